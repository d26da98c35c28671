"""Tries the GPU path in under ten minutes with the calling Python, and installs nothing:

    python -m tools.benchmark.gpu_report --data data/demo       # or make gpu-report
    python -m tools.benchmark.gpu_report --data data/demo --device cpu --small       # the same steps in small

Steps: golden numbers in float32; kill and resume with --deterministic, compared bit by bit; training and evaluation on
the demo set in float16; time and memory of the networks at batch 16; the log-sum-exp of the fused kernels; images a
second of the loader; compiled networks; the largest batch. Each step's output is in a file of its own in the output
folder, report.json holds what came out. A step that fails, or for which no time is left, does not stop the others.
"""

import argparse
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.option_types import positive_float
from tools.benchmark.logsumexp import total_gain
from tools.benchmark.measure import machine, read_results, write_results
from tools.benchmark.tables import image_seconds, ratios
from utils import UserError, make_writable_folder

ROOT = Path(__file__).resolve().parents[2]
WORKERS = "loader, 2 workers"  # the row that says what a process reads beside another


@dataclass
class Report:
    """What all steps share.

    Attributes:
        folder: for the files of the steps.
        data: the demo set's folder.
        device: "cuda" or "cpu".
        small: whether every step is tried in small.
        end: the time by `time.monotonic` at which the last step is stopped.
    """

    folder: Path
    data: Path
    device: str
    small: bool
    end: float

    def run(self, name: str, *words: str, kill_at: Path | None = None) -> str:
        """Runs Python with arguments into `name`.log and returns its output.

        Args:
            kill_at: a file at whose appearance the program is killed.

        Raises:
            RuntimeError: it failed, or took longer than the report has time.
        """
        log = self.folder / f"{name}.log"
        with log.open("w", encoding="utf-8") as file:
            file.write(f"{shlex.join(['python', *words])}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = self.wait(process, kill_at)
            finally:  # its own processes too
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            raise RuntimeError(f"{code}, see {log.name}")
        return log.read_text(encoding="utf-8")

    def wait(self, process: subprocess.Popen, kill_at: Path | None) -> str:
        """Waits for a program; returns what went wrong, or nothing."""
        while process.poll() is None:
            if kill_at and kill_at.exists():
                return ""
            if time.monotonic() > self.end:
                return "stopped, as the time of the report was over"
            time.sleep(0.05)
        if kill_at:
            return "ended before it was killed"
        return f"exit code {process.returncode}" if process.returncode else ""

    def training(self, run: str, *more: str) -> list[str]:
        """The command that trains LORA-V on the demo set, into a folder of its own."""
        words = ["main_V.py", "--config", "configs/demo.py", "--data-path", str(self.data)]
        words += ["--output_dir", str(self.folder / run), "--device", self.device, "--epochs", "2", "--no-figures"]
        return [*words, *(["--steps-per-epoch", "6", "--batch-size", "4"] if self.small else []), *more]

    def benchmark(self, name: str, command: str, *words: str) -> Any:
        """The results of a benchmark, with its figures in `name`.json and its tables in `name`.log."""
        path = self.folder / f"{name}.json"
        device = [] if command == "loader" else ["--device", self.device]
        self.run(name, "-m", "tools.benchmark", command, *device, *words, "--output", str(path))
        return read_results(path)["results"]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types that the device is fast in."""
        return ("float16", "bfloat16") if self.device == "cuda" else ("float32",)

    @property
    def batch_size(self) -> str:
        """Of the networks that are compared."""
        return "2" if self.small else "16"

    def compare(self, name: str, rows: Sequence[str], *words: str) -> dict[str, dict[str, str]]:
        """How the networks of `rows` compare, for each type and step."""
        small = ["--size", "96", "--backbone", "pvt_demo", "--alpha", "4", "--rounds", "1"]
        flags = [*(small if self.small else ["--size", "448", "--row-seconds", "8", "--rounds", "25"]), *words]
        groups: dict[str, dict[str, dict[str, Any]]] = {}
        for result in self.benchmark(name, "network", "--rows", *rows, *flags):
            groups.setdefault(f"{result['dtype']} {result['mode']}", {})[result["row"]] = result
        return {step: image_rates(group) | ratios(group) for step, group in groups.items()}


def image_rates(group: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Images a second of each row that fits, with its batch."""
    rows = {row: result for row, result in group.items() if "seconds" in result}
    return {row: f"{1 / image_seconds(one):.1f} images/s at batch {one['batch_size']}" for row, one in rows.items()}


def golden(report: Report) -> dict[str, Any]:
    """The published numbers in float32, TF32 off (PyTorch's default)."""
    tests = ["tests/test_golden.py", "-k", f"float32 and {report.device}"]
    output = report.run("golden", "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests)
    return {"tests": re.findall(r"\d+ passed.*", output)[-1]}


def resume(report: Report) -> dict[str, Any]:
    """A run that is killed after its first checkpoint and resumed, beside one that is not killed."""
    flags = ["--deterministic", "--checkpoint-steps", "2"]
    whole, killed = (report.folder / name / "checkpoint_v.pth" for name in ("whole", "killed"))
    report.run("whole", *report.training("whole", *flags))
    killed.unlink(missing_ok=True)  # of a report before
    report.run("killed", *report.training("killed", *flags), kill_at=killed)
    report.run("resumed", *report.training("killed", *flags, "--resume", "auto"))
    weights = [torch.load(path, map_location="cpu", weights_only=True)["model"] for path in (whole, killed)]
    return {"same_bits": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())}


def demo(report: Report) -> dict[str, Any]:
    """Training and evaluation in mixed precision."""
    dtype = report.dtypes[0] if report.device == "cuda" else "bfloat16"
    words = report.training("demo", "--amp-dtype", dtype, "--epochs", "1" if report.small else "30")
    report.run("demo", *words)
    output = report.run("eval", *words, "--eval", "--resume", str(report.folder / "demo" / "checkpoint_v_best.pth"))
    return {"amp_dtype": dtype, "test": re.findall(r"top-1 .*", output)[-1]}


def networks(report: Report) -> dict[str, Any]:
    """Time and memory of ours, the textbook form and the backbone at batch 16."""
    words = ["--dtype", *report.dtypes, "--batch-size", report.batch_size]
    return report.compare("networks", ["ours", "textbook", "backbone"], *words)


def logsumexp(report: Report) -> dict[str, Any]:
    """What the log-sum-exp of the fused kernels would gain re-attention."""
    small = ["--size", "64", "--batch-size", "1"] if report.small else []
    results = report.benchmark("logsumexp", "logsumexp", "--dtype", *report.dtypes, *small)
    return {f"time over that with it, {dtype}": f"{gain:.2f}" for dtype, gain in total_gain(results).items()}


def loader(report: Report) -> dict[str, Any]:
    """Images a second that a loader's process reads at 448 px, and how many keep up with training at batch 16."""
    small = ["--images", "4", "--rounds", "1", "--input-size", "64"]
    seconds = report.benchmark("loader", "loader", *(small if report.small else ["--rounds", "3"]))["JPEG stickers"]
    rate = 1 / seconds[WORKERS]["median"] / 2
    found: dict[str, Any] = {"images/s a process": f"{rate:.1f}"}
    measured = report.folder / "networks.json"
    if measured.exists():
        training = [
            row for row in read_results(measured)["results"] if (row["row"], row["mode"]) == ("ours", "training")
        ]
        needed = {row["dtype"]: row["batch_size"] / row["seconds"]["median"] / rate for row in training}
        found["processes that keep up"] = {dtype: math.ceil(number) for dtype, number in needed.items()}
    return found


def compiled(report: Report) -> dict[str, Any]:
    """Time and memory of the compiled networks at batch 16."""
    words = ["--compile", "--dtype", report.dtypes[0], "--batch-size", report.batch_size, "--mode", "training"]
    return report.compare("compiled", ["ours", "ours compiled", "backbone compiled"], *words)


def largest(report: Report) -> dict[str, Any]:
    """The largest batches in training."""
    words = ["--dtype", report.dtypes[0], "--batch-size", "max", "--mode", "training", "--rounds", "3"]
    small = ["--memory-limit", "1"] if report.small else []
    return report.compare("largest", ["ours", "textbook", "backbone"], *words, *small)


STEPS: dict[str, Callable[[Report], dict[str, Any]]] = {
    step.__name__: step for step in (golden, resume, demo, networks, logsumexp, loader, compiled, largest)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps and writes the report; returns 1 if one of them failed."""
    options = parse(arguments)
    folder, outcomes = options.output.resolve(), {}
    make_writable_folder(folder)
    end = time.monotonic() + 60 * options.minutes
    report = Report(folder, options.data.resolve(), options.device, options.small, end)
    for name in options.steps:
        began = time.monotonic()
        try:
            outcome = STEPS[name](report)
        except (RuntimeError, OSError, KeyError, IndexError, UserError) as error:
            outcome = {"failed": f"{type(error).__name__}: {error}"}
        outcomes[name] = outcome | {"seconds": round(time.monotonic() - began)}
        print(f"{name}: {outcomes[name]}", flush=True)
        write_results(folder / "report.json", {"benchmark": "gpu-report", **machine(options.device)}, outcomes)
    return int(any("failed" in outcome for outcome in outcomes.values()))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; raises UserError for what is not there."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark.gpu_report", description=__doc__, formatter_class=form
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), metavar="DIR", help="the demo set's folder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="every step in small")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--minutes", type=positive_float, default=9.5, help="after which what still runs is stopped")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-report"), metavar="DIR")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; --device cpu --small tries the steps")
    if not options.data.is_dir():
        raise UserError(
            f"--data {options.data}: expected the demo set's folder, found none; python -m tools.demo_set makes it"
        )
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"gpu_report: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
