"""Puts tables of result files into a document and draws results over the image size.

    python -m tools.benchmark plot docs/benchmarks/cpu_sizes.json --docs docs/performance.md --plot docs/benchmark.png

In the document the tables of `NAME.json` stand between the lines `<!-- benchmark: NAME -->` and `<!-- end -->`. The
plot shows the files of `network` that have several sizes.
"""

import argparse
import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tools.benchmark.exported import onnx_table
from tools.benchmark.loader import loader_table
from tools.benchmark.logsumexp import logsumexp_table
from tools.benchmark.measure import GIB, read_results
from tools.benchmark.runs import run_table
from tools.benchmark.tables import MODES, image_seconds, network_name, network_table
from utils import UserError

TABLES = {
    "network": network_table,
    "loader": loader_table,
    "run": run_table,
    "onnx": onnx_table,
    "logsumexp": logsumexp_table,
}
ROWS = {"textbook": "as the paper writes it", "ours": "ours", "backbone": "backbone alone", "pvt_v2_b2": "pvt_v2_b2"}
VALUES = {
    "seconds an image": image_seconds,
    "peak memory of the network, GiB": lambda result: result["network_bytes"] / GIB,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="files that the other commands wrote with --output")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--docs", type=Path, help="Markdown file")


def run(options: argparse.Namespace) -> None:
    """Draws and fills in; raises UserError for a file that does not fit."""
    measured = {path.stem: read_results(path) for path in options.files}
    if options.plot:
        draw([one for one in measured.values() if one["facts"]["benchmark"] == "network"], options.plot)
    if options.docs:
        content = filled_in(options.docs.read_text(encoding="utf-8"), measured)
        options.docs.write_text(content, encoding="utf-8")


def filled_in(document: str, measured: dict[str, dict[str, Any]]) -> str:
    """The document with the tables between its marks replaced."""
    for name, one in measured.items():
        marks = re.compile(rf"(<!-- benchmark: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = TABLES[one["facts"]["benchmark"]](one["facts"], one["results"])
        document, count = marks.subn(lambda match, table=table: f"{match[1]}{table}{match[2]}", document)
        if count != 1:
            raise UserError(f"--docs: expected <!-- benchmark: {name} --> and <!-- end --> once, found {count}")
    return document


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against the image's side, a column each and a row for each mode, all axes logarithmic."""
    files = [one for one in measured if len({result["size"] for result in one["results"]}) > 1]
    if not files:
        raise UserError("--plot: expected a file of network with several sizes, found none; give --size 224 448 896")
    results = [result for one in files for result in one["results"]]
    sizes = sorted({result["size"] for result in results})
    modes = [mode for mode in MODES if any(result["mode"] == mode for result in results)]
    figure, axes = plt.subplots(len(modes), 2, figsize=(10, 4 * len(modes)), squeeze=False)
    for mode, (axis, (title, value)) in itertools.product(modes, enumerate(VALUES.items())):
        axis = axes[modes.index(mode), axis]
        for row, label in ROWS.items():
            chosen = [one for one in results if (one["row"], one["mode"]) == (row, mode) and "seconds" in one]
            if points := sorted((one["size"], value(one)) for one in chosen):
                axis.plot(*zip(*points, strict=True), marker="o", label=label)
        axis.set(xscale="log", yscale="log", title=f"{MODES[mode]}: {title}", xlabel="side of the image, px")
        axis.set_xticks(sizes, labels=[str(size) for size in sizes])
        axis.set_xticks([], minor=True)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    facts = files[0]["facts"]
    figure.suptitle(f"{network_name(facts)}, {facts['machine']}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
