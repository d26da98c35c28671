"""Draws the benchmark's results over the image size and puts its tables into a document.

    python tools/plot_benchmark.py docs/benchmarks/*.json --plot docs/benchmark.png --docs docs/performance.md

The plot takes the files with several sizes. In the document the tables of `docs/benchmarks/NAME.json` stand between the
lines `<!-- benchmark: NAME -->` and `<!-- end -->`, where they are replaced.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.benchmark_table import facts_line, format_results
from utils import UserError

GIB = 2**30
ROWS = {"textbook": "as the paper writes it", "ours": "ours", "backbone": "backbone alone", "pvt_v2_b2": "pvt_v2_b2"}
MODES = {"forward": "forward", "training": "training step"}


def main(argv: list[str] | None = None) -> int:
    """Draws and fills in; 2 for a file that does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="what tools/benchmark.py --output wrote")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--docs", type=Path, help="Markdown file")
    options = parser.parse_args(argv)
    try:
        measured = {path.stem: read(path) for path in options.files}
        if options.plot:
            draw(list(measured.values()), options.plot)
        if options.docs:
            options.docs.write_text(filled_in(options.docs.read_text(), measured))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read(path: Path) -> dict[str, Any]:
    """A benchmark file; UserError for another one."""
    try:
        measured = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected a file of tools/benchmark.py --output ({error})") from error
    if not isinstance(measured, dict) or not {"facts", "results"} <= measured.keys():
        raise UserError(f"{path}: expected a file of tools/benchmark.py --output with facts and results")
    return measured


def filled_in(document: str, measured: dict[str, dict[str, Any]]) -> str:
    """The document with the tables between its marks replaced; every file must have its marks."""
    for name, results in measured.items():
        marks = re.compile(rf"(<!-- benchmark: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        tables = format_results(results)
        document, count = marks.subn(lambda found, tables=tables: f"{found[1]}{tables}{found[2]}", document)
        if count != 1:
            raise UserError(f"--docs: expected <!-- benchmark: {name} --> and <!-- end --> once, found {count}")
    return document


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against the image's side, a column each and a row for each mode, all axes logarithmic."""
    files = [one for one in measured if len({result["size"] for result in one["results"]}) > 1]
    if not files:
        raise UserError("--plot: no file has several sizes; run tools/benchmark.py --size 224 448 896")
    results = [result for one in files for result in one["results"]]
    modes = [mode for mode in MODES if any(result["mode"] == mode for result in results)]
    figure, axes = plt.subplots(len(modes), 2, figsize=(10, 4 * len(modes)), squeeze=False)
    for (time_axis, memory_axis), mode in zip(axes, modes, strict=True):
        for row, label in ROWS.items():
            found = [result for result in results if (result["row"], result["mode"]) == (row, mode)]
            draw_line(time_axis, found, label, lambda result: result["seconds"]["median"] / result["batch_size"])
            draw_line(memory_axis, found, label, lambda result: result["network_bytes"] / GIB)
        finish(time_axis, f"{MODES[mode]}: seconds an image", results)
        finish(memory_axis, f"{MODES[mode]}: peak memory of the network, GiB", results)
    facts = files[0]["facts"]
    figure.suptitle(f"{facts_line(facts)}, {facts['machine']}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_line(axis: Any, results: list[dict[str, Any]], label: str, value: Any) -> None:
    """One row over the sizes at which it was measured."""
    points = sorted((result["size"], value(result)) for result in results if "seconds" in result)
    if points:
        axis.plot(*zip(*points, strict=True), marker="o", label=label)


def finish(axis: Any, title: str, results: list[dict[str, Any]]) -> None:
    """Logarithmic axes with the measured sizes as ticks."""
    sizes = sorted({result["size"] for result in results})
    axis.set(xscale="log", yscale="log", title=title, xlabel="side of the image, px")
    axis.set_xticks(sizes, labels=[str(size) for size in sizes])
    axis.set_xticks([], minor=True)
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()


if __name__ == "__main__":
    sys.exit(main())
