"""Tries the GPU path in under ten minutes with the calling Python, and installs nothing:

    python -m tools.benchmark.gpu_report --data data/demo       # or make gpu-report
    python -m tools.benchmark.gpu_report --data data/demo --device cpu --small       # the same steps in small

Steps: golden numbers in float32; kill and resume with --deterministic, compared bit by bit; training and evaluation on
the demo set in float16; time and memory of the networks; images a second of the loader. Each step's output is in a file
of its own in the output folder, report.json holds what came out. A step that fails does not stop the others.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tools.benchmark.measure import machine, read_results, write_results
from utils import UserError, make_writable_folder

ROOT = Path(__file__).resolve().parents[2]
Step = Callable[[argparse.Namespace, Path], dict[str, Any]]


def run(words: Sequence[str], log: Path, seconds: float) -> str:
    """Runs Python with arguments and returns its output; raises RuntimeError if it fails or takes too long."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            code = f"none after {seconds:.0f} s"
    if code:
        raise RuntimeError(f"exit code {code}, see {log.name}")
    return log.read_text(encoding="utf-8")


def training(options: argparse.Namespace, folder: Path, *more: str) -> list[str]:
    """The command that trains LORA-V on the demo set."""
    words = ["main_V.py", "--config", "configs/demo.py", "--data-path", str(options.data.resolve())]
    words += ["--output_dir", str(folder), "--device", options.device, "--epochs", "2", "--num_workers", "2"]
    return [*words, *(["--steps-per-epoch", "6"] if options.small else []), *more]


def golden(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The published numbers in float32, TF32 off (PyTorch's default)."""
    tests = ["tests/test_golden.py", "-k", f"float32 and {options.device}"]
    output = run(["-m", "pytest", "-p", "no:cacheprovider", *tests], folder / "golden.log", 400)
    return {"tests": re.findall(r"\d+ passed.*", output)[-1]}


def resume(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A run that is killed after its first checkpoint and resumed, beside one that is not killed."""
    flags = ["--deterministic", "--checkpoint-steps", "2", "--resume", "auto", "--no-figures"]
    run(training(options, folder / "whole", *flags), folder / "whole.log", 200)
    checkpoint = folder / "killed" / "checkpoint_v.pth"
    with (folder / "killed.log").open("w") as log:
        words = [sys.executable, *training(options, folder / "killed", *flags)]
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(training(options, folder / "killed", *flags), folder / "resumed.log", 200)
    whole, killed = (torch.load(folder / name / "checkpoint_v.pth", map_location="cpu") for name in ("whole", "killed"))
    same = all(torch.equal(value, killed["model"][name]) for name, value in whole["model"].items())
    return {"same_bits": same, "exit_of_the_killed": process.returncode}


def demo(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Training and evaluation in mixed precision."""
    dtype = "float16" if options.device == "cuda" else "bfloat16"
    epochs = ["--epochs", "1" if options.small else "30"]
    run(training(options, folder / "demo", "--amp-dtype", dtype, "--no-figures", *epochs), folder / "demo.log", 300)
    evaluation = [*training(options, folder / "demo", "--amp-dtype", dtype), "--eval"]
    output = run([*evaluation, "--resume", str(folder / "demo" / "checkpoint_v_best.pth")], folder / "eval.log", 60)
    return {"amp_dtype": dtype, "test": re.findall(r"top-1 .*", output)[-1]}


def networks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time and memory of ours, the textbook form and the backbone."""
    small = ["--size", "96", "--backbone", "pvt_demo", "--alpha", "4", "--batch-size", "1", "--rounds", "1"]
    full = ["--size", "448", "--dtype", "float16", "bfloat16", "--batch-size", "16", "max", "--compile"]
    words = ["-m", "tools.benchmark", "network", "--device", options.device, "--rows", "ours", "textbook", "backbone"]
    words += [*(small if options.small else [*full, "--row-seconds", "10"]), "--output", str(folder / "networks.json")]
    run(words, folder / "networks.log", 400)
    return {"rows": len(read_results(folder / "networks.json")["results"])}


def loader(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images a second of the loader, from which follows how many workers the GPU needs."""
    words = ["-m", "tools.benchmark", "loader", "--data-path", str(options.data.resolve())]
    run([*words, "--output", str(folder / "loader.json")], folder / "loader.log", 200)
    return {"file": "loader.json"}


STEPS: dict[str, Step] = {"golden": golden, "resume": resume, "demo": demo, "networks": networks, "loader": loader}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps and writes the report; returns 1 if one of them failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark.gpu_report", description=__doc__, formatter_class=form
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), metavar="DIR", help="the demo set's folder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="every step in small")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-report"), metavar="DIR")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; --device cpu --small tries the steps")
    if not options.data.is_dir():
        raise UserError(
            f"--data {options.data}: expected the demo set's folder, found none; python -m tools.demo_set makes it"
        )
    folder, outcomes = options.output.resolve(), {}
    make_writable_folder(folder)
    for name in options.steps:
        began = time.monotonic()
        try:
            outcome = STEPS[name](options, folder)
        except (RuntimeError, OSError, KeyError, IndexError, UserError) as error:
            outcome = {"failed": f"{type(error).__name__}: {error}"}
        outcomes[name] = outcome | {"seconds": round(time.monotonic() - began)}
        print(f"{name}: {outcomes[name]}", flush=True)
        write_results(folder / "report.json", {"benchmark": "gpu-report", **machine(options.device)}, outcomes)
    return int(any("failed" in outcome for outcome in outcomes.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"gpu_report: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
