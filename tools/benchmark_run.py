"""Times whole trainings with one switch each beside a plain one, as real commands, interleaved.

    python tools/benchmark_run.py --output docs/benchmarks/run_switches.json

Each row is `main_V.py` with the paper's network and a switch; each round runs every row once. The seconds an image are
those that the run's log has for its epoch, loading included; the peak of memory is the process's own and, of its
loader workers, the largest one's. Medians and quartiles over the rounds, a Markdown table, JSON.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.benchmark_measure import machine, summarize

GIVEN_BACK = "freed memory given back"  # the command as it is without `keep_freed_memory`, which has no switch
IMPORTED = "import sys; from main_V import DEFAULTS, main; sys.exit(main(**DEFAULTS))"
SWITCHES = (
    "plain",
    GIVEN_BACK,
    "--amp-dtype bfloat16",
    "--channels-last",
    "--grad-checkpointing",
    "--grad-accum-steps 2",
    "--clip-grad 1",
    "--layer-decay 0.8",
    "--model-ema",
    "--fused",
    "--cache-images",
    "--jpeg-draft",
    "--num_workers 1",
    "--num_workers 1 --prefetch-factor 4",
    "--checkpoint-steps 4",
    "--deterministic",
)


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON; returns the exit code."""
    options = build_parser().parse_args(argv)
    measured: dict[str, list[tuple[float, float]]] = {row: [] for row in dict.fromkeys(["plain", *options.rows])}
    try:
        with tempfile.TemporaryDirectory() as data:
            shorten_evaluation(options.data_path, Path(data))
            for _ in range(options.rounds):
                for row, values in measured.items():
                    with tempfile.TemporaryDirectory() as folder:
                        values.append(run(options, row, Path(data), Path(folder)))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"benchmark_run.py: error: {error}", file=sys.stderr)
        return 2
    rows = {}
    for row, values in measured.items():
        seconds, peaks = zip(*values, strict=True)
        rows[row] = {"seconds_an_image": summarize(seconds), "peak_gib": summarize(peaks)}
    settings = (
        f"LORA-V, {options.backbone}, {options.size} px, batch {options.batch_size}, {options.steps} batches a run"
    )
    facts = {"command": shlex.join(["python", "tools/benchmark_run.py", *(argv or sys.argv[1:])]), "settings": settings}
    facts |= machine("cpu")
    print(format_table(rows, facts))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, default=Path("data/demo"), help="as made by make demo-set")
    parser.add_argument("--backbone", default="pvt_small")
    parser.add_argument("--size", type=int, default=224, help="side of the image, pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="batches of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rows", nargs="+", choices=SWITCHES, default=SWITCHES, metavar="ROW", help="beside plain (default: all)"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def run(options: argparse.Namespace, row: str, data: Path, folder: Path) -> tuple[float, float]:
    """Trains once; returns seconds an image and peak memory in GiB; RuntimeError has the output of a failure."""
    switch = row.split() if row.startswith("-") else []
    accumulated = int(switch[1]) if switch[:1] == ["--grad-accum-steps"] else 1
    program = ["-c", IMPORTED] if row == GIVEN_BACK else ["main_V.py"]
    command = [sys.executable, *program, "--data-path", data, "--output_dir", folder, "--no-repeated-aug"]
    command += ["--backbone", options.backbone, "--input-size", options.size, "--batch-size", options.batch_size]
    command += ["--steps-per-epoch", options.steps // accumulated, "--epochs", 1, "--device", options.device]
    command += ["--num_workers", 0, *switch]
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise RuntimeError(f"{row}: {output.read()[-500:]}")
    entry = json.loads((folder / "log.txt").read_text())
    return entry["train_seconds"] / (options.steps * options.batch_size), usage.ru_maxrss / 2**20


def shorten_evaluation(source: Path, folder: Path) -> Path:
    """The data set with its training split and pictures, and of the others a few images."""
    (folder / "Annotations").mkdir()
    (folder / "Images").symlink_to((source / "Images").resolve())
    for split in ("train", "val", "test"):
        content = json.loads((source / "Annotations" / "image-level" / f"{split}.json").read_text())
        kept = content["annotations"] if split == "train" else content["annotations"][:4]
        (folder / "Annotations" / f"{split}.json").write_text(json.dumps({"annotations": kept}))
    return folder


def format_table(rows: dict[str, Any], facts: dict[str, Any]) -> str:
    """The measurements as a Markdown table, with the time of each row over that of the plain run."""
    lines = [
        f"{facts['settings']}; {facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}",
        "",
        "| switch | s an image | quartiles | over plain | peak GiB |",
        "|---|---|---|---|---|",
    ]
    plain = rows["plain"]["seconds_an_image"]["median"]
    for name, row in rows.items():
        seconds = row["seconds_an_image"]
        spread = f"{seconds['lower']:.3f} to {seconds['upper']:.3f}"
        name = f"`{name}`" if name.startswith("-") else name
        ratio, peak = seconds["median"] / plain, row["peak_gib"]["median"]
        lines.append(f"| {name} | {seconds['median']:.3f} | {spread} | {ratio:.2f} | {peak:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
