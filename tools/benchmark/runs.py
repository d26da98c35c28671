"""Compares whole trainings, each with one switch, with a plain one.

    python -m tools.benchmark run --output docs/benchmarks/run_switches.json

Each row is `main_V.py` with the paper's network and a switch; each round runs every row once. The seconds an image are
those that the run's log has for its epoch, loading included. The peak of memory is the process's own, or that of a
loader worker if it is larger.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from runtime.option_types import positive_int
from tools.benchmark.measure import GIB, format_table, interleave, spread, summarize, where
from utils import UserError, printable, reason

PR_SET_PDEATHSIG = 1  # of prctl in <sys/prctl.h>
ROOT = Path(__file__).resolve().parents[2]
GIVEN_BACK = "freed memory given back"  # the run without `keep_freed_memory`, which has no switch
IMPORTED = "import sys; from main_V import DEFAULTS, main; sys.exit(main(**DEFAULTS))"
SWITCHES = (
    "--amp-dtype bfloat16, --channels-last, --grad-checkpointing, --grad-accum-steps 2, --clip-grad 1, "
    "--layer-decay 0.8, --model-ema, --fused, --cache-images, --jpeg-draft, --num_workers 1, "
    "--num_workers 1 --prefetch-factor 4, --checkpoint-steps 4, --deterministic"
)
ROWS = ("plain", GIVEN_BACK, *SWITCHES.split(", "))


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", type=Path, default=Path("data/demo"), help="as made by make demo-set")
    parser.add_argument("--backbone", default="pvt_small")
    parser.add_argument("--size", type=positive_int, default=224, help="side of the image, pixels")
    parser.add_argument("--batch-size", type=positive_int, default=4)
    parser.add_argument("--steps", type=positive_int, default=8, help="batches of each run")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help="beside plain")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts and both figures of each row; raises UserError for another data set or a run that fails."""
    peaks: dict[str, list[float]] = {row: [] for row in dict.fromkeys(["plain", *options.rows])}
    with tempfile.TemporaryDirectory() as folder:
        data = shorten_evaluation(options.data_path, Path(folder))
        steps = {row: partial(train, row, options, data, peaks[row]) for row in peaks}
        seconds = interleave(steps, rounds=options.rounds, warm_up=False)
    batches = f"batch {options.batch_size}, {options.steps} batches a run"
    results = {row: {"seconds_an_image": seconds[row], "peak_gib": summarize(peaks[row])} for row in peaks}
    return {"settings": f"LORA-V, {options.backbone}, {options.size} px, {batches}"}, results


def train(row: str, options: argparse.Namespace, data: Path, peaks: list[float]) -> float:
    """Trains once; returns the seconds an image and appends the peak of memory in GiB.

    The training ends with this process, even if this one is killed.
    """
    switch = row.split() if row.startswith("-") else []
    accumulated = int(switch[1]) if switch[:1] == ["--grad-accum-steps"] else 1
    program = ["-c", IMPORTED] if row == GIVEN_BACK else ["main_V.py"]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "output.txt").open("w+", encoding="utf-8") as output:
        command = [sys.executable, *program, "--data-path", data, "--output_dir", folder, "--no-repeated-aug"]
        command += ["--backbone", options.backbone, "--input-size", options.size, "--batch-size", options.batch_size]
        command += ["--steps-per-epoch", options.steps // accumulated, "--epochs", 1, "--device", options.device]
        command = [str(word) for word in [*command, "--num_workers", 0, *switch]]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, preexec_fn=end_with_parent)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise UserError(f"{row}: the run failed: {output.read()[-500:]}")
        entry = json.loads(Path(folder, "log.txt").read_text(encoding="utf-8"))
    peaks.append(usage.ru_maxrss * 1024 / GIB)
    return entry["train_seconds"] / (options.steps * options.batch_size)


def end_with_parent() -> None:
    """Lets Linux kill this process when the one that started it ends, even if that one is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def shorten_evaluation(source: Path, folder: Path) -> Path:
    """The data set with its training split and pictures, but only four images of the other splits."""
    try:
        (folder / "Annotations").mkdir()
        (folder / "Images").symlink_to((source / "Images").resolve())
        for split in ("train", "val", "test"):
            content = json.loads((source / "Annotations" / "image-level" / f"{split}.json").read_text(encoding="utf-8"))
            kept = content["annotations"] if split == "train" else content["annotations"][:4]
            (folder / "Annotations" / f"{split}.json").write_text(json.dumps({"annotations": kept}), encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        expected = f"--data-path {printable(source)}: expected a set made by make demo-set"
        raise UserError(f"{expected}, found: {reason(error)}") from error
    return folder


def run_table(facts: dict[str, Any], results: dict[str, Any]) -> str:
    """Time and memory of each row, and its time over that of the plain run."""
    plain = results["plain"]["seconds_an_image"]["median"]
    lines = []
    for name, row in results.items():
        seconds = row["seconds_an_image"]
        ratio, peak = f"{seconds['median'] / plain:.2f}", f"{row['peak_gib']['median']:.2f}"
        lines.append([f"`{name}`" if name.startswith("-") else name, spread(seconds), ratio, peak])
    heads = ["switch", "s an image (quartiles)", "over plain", "peak GiB"]
    return f"{facts['settings']}; {where(facts)}.\n\n{format_table(heads, lines)}\n"
