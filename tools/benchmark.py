"""Measures LORA and LORA-V beside the textbook form and other networks: time, memory, operations.

    python tools/benchmark.py --threads 2 --size 224 448 896 --output docs/benchmarks/sizes.json
    python tools/benchmark.py --device cuda --dtype float16 bfloat16 --batch-size 16 max --compile \\
      --output docs/benchmarks/gpu.json

Rows: ours; the same network with re-attention and fusion as the paper writes them (textbook, models/textbook.py); the
same backbone without re-attention and fusion, which is the limit; timm's pvt_v2_b2 and resnet50; for LORA also LORA-V
and the text encoder alone. --compile, --channels-last, --grad-checkpointing and --bfloat16 add rows of ours and the
backbone in that form. How each figure is taken is told in tools/benchmark_measure.py. Prints Markdown tables, writes
JSON; tools/plot_benchmark.py draws it and puts the tables into docs/performance.md.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from models.pvt import BACKBONES
from models.vision import check_image_size
from runtime.setup import keep_freed_memory
from tools.benchmark_measure import (
    GIB,
    alone,
    attention_backend,
    interleave,
    largest_batch,
    machine,
    matrix_rate,
    memory_limit,
)
from tools.benchmark_rows import VARIANTS, Setting, build_step, row_names
from tools.benchmark_table import format_results
from utils import UserError, naming_flags

DTYPES = ("float32", "float16", "bfloat16")


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the tables, writes the JSON; 2 for a mistake in the flags."""
    options = build_parser().parse_args(argv)
    try:
        check(options)
        if options.threads:
            torch.set_num_threads(options.threads)
        if options.device == "cpu":
            keep_freed_memory()  # as main.py does
        if options.profile:
            write_profile(options)
            return 0
        measured = {"facts": describe(options, argv), "results": measure(options)}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    add_shares(measured)
    print(format_results(measured))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("lora", "lora_v"), default="lora_v")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="pvt_small")
    parser.add_argument("--locals", type=int, nargs=4, default=[1, 1, 1, 0], metavar="L")
    parser.add_argument("--alpha", type=int, default=8)
    parser.add_argument("--size", type=int, nargs="+", default=[448], help="sides of the images, pixels")
    parser.add_argument("--batch-size", nargs="+", default=["1"], help="images, or max: the most that fit")
    parser.add_argument("--mode", choices=("forward", "training"), nargs="+", default=["forward", "training"])
    parser.add_argument(
        "--dtype", choices=DTYPES, nargs="+", default=["float32"], help="of the forward pass (autocast)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--row-seconds", type=float, default=60, help="a row that has run this long rests")
    parser.add_argument("--rows", nargs="+", help="the rows to measure; all by default")
    parser.add_argument("--skip", nargs="+", default=[], help="rows to leave out")
    parser.add_argument("--memory-limit", type=float, help="GiB a row may have; by default what is free")
    parser.add_argument("--compile", action="append_const", dest="variants", const="compiled", default=[])
    parser.add_argument("--channels-last", action="append_const", dest="variants", const="channels-last")
    parser.add_argument("--grad-checkpointing", action="append_const", dest="variants", const="checkpointing")
    parser.add_argument("--bfloat16", action="append_const", dest="variants", const="bfloat16")
    parser.add_argument("--profile", type=Path, help="write a trace of one step of ours, measure nothing")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def check(options: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    for size in options.size:
        with naming_flags(("alpha", "input_size")):
            check_image_size(size, size, options.alpha)
    for batch_size in options.batch_size:
        if batch_size != "max" and not (batch_size.isdigit() and int(batch_size)):
            raise UserError(f"--batch-size {batch_size}: expected a number of images or max")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    known = {row for mode in options.mode for row in row_names(options.model, mode, VARIANTS)}
    for row in [*(options.rows or []), *options.skip]:
        if row not in known:
            raise UserError(f"--rows {row!r} is unknown: expected some of {', '.join(sorted(known))}")


def settings(options: argparse.Namespace) -> list[tuple[Setting, bool]]:
    """What is measured one after another, and whether at the largest batch that fits."""
    network = {"model": options.model, "backbone": options.backbone, "locals": tuple(options.locals)}
    asked = itertools.product(options.dtype, options.batch_size, options.size, options.mode)
    return [
        (
            Setting(
                **network,
                alpha=options.alpha,
                size=size,
                batch_size=1 if batch_size == "max" else int(batch_size),
                dtype=dtype,
                device=options.device,
                mode=mode,
            ),
            batch_size == "max",
        )
        for dtype, batch_size, size, mode in asked
    ]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry a row, size and mode."""
    results = []
    for setting, at_most in settings(options):
        rows = [row for row in row_names(options.model, setting.mode, options.variants) if row not in options.skip]
        rows = [row for row in rows if not options.rows or row in options.rows]
        limit = options.memory_limit * GIB if options.memory_limit else memory_limit(options.device)
        take = measure_at_most if at_most else measure_together
        results += take(rows, setting, limit, options)
    return results


def measure_together(
    rows: list[str], setting: Setting, limit: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Memory and operations of each row alone, then the time of those that fit, in turns if they do so together."""
    threads, found = torch.get_num_threads(), {}
    for row in rows:
        say(f"{setting.dtype}, {setting.size} px, {setting.mode}, {row}: memory and operations")
        found[row] = alone(row, setting, threads=threads, limit=limit)
    fitting = [row for row in rows if "refused" not in found[row]]
    say(f"{setting.dtype}, {setting.size} px, {setting.mode}: time")
    if together(found[row] for row in fitting) < limit:
        steps = {row: build_step(row, setting) for row in fitting}
        seconds = interleave(steps, setting.device, rounds=options.rounds, row_seconds=options.row_seconds)
        for row in fitting:
            found[row] |= {"seconds": seconds[row], "timed": "in turns"}
    else:
        for row in fitting:
            found[row] = alone(row, setting, threads=threads, limit=limit, rounds=options.rounds)
    return [entry(row, setting, found[row]) for row in rows]


def together(found: Iterable[dict[str, Any]]) -> int:
    """Bytes that rows need in one process, by what each needs alone."""
    needs = [(one["network_bytes"], one["peak_bytes"] - one["network_bytes"]) for one in found]
    return sum(network for network, _ in needs) + max((libraries for _, libraries in needs), default=0)


def measure_at_most(
    rows: list[str], setting: Setting, limit: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each row alone at the largest batch that fits: together they would not."""
    threads, results = torch.get_num_threads(), []
    for row in rows:
        say(f"{setting.dtype}, {setting.size} px, {setting.mode}, {row}: largest batch")
        batch_size = largest_batch(row, setting, threads=threads, limit=limit)
        largest = replace(setting, batch_size=max(batch_size, 1))
        found = alone(row, largest, threads=threads, limit=limit, rounds=options.rounds)
        results.append(entry(row, largest, found) | {"largest_batch": True})
    return results


def entry(row: str, setting: Setting, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the results."""
    fields = ("dtype", "size", "mode", "batch_size")
    return {"row": row, **{field: getattr(setting, field) for field in fields}} | found


def add_shares(measured: dict[str, Any]) -> None:
    """Puts in each row the share of the device's matrix rate that its operations reach."""
    for result in measured["results"]:
        if result.get("flops") and "seconds" in result:
            rate = result["flops"] / result["seconds"]["median"]
            if not result["row"].endswith("bfloat16"):  # that row's rate may not be known
                result["matrix_share"] = rate / measured["facts"]["matrix_rate"][result["dtype"]]


def describe(options: argparse.Namespace, argv: list[str] | None) -> dict[str, Any]:
    """What was measured, where, when and by which command."""
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": " ".join(["python", "tools/benchmark.py", *arguments]),
        **machine(options.device),
        "model": options.model,
        "backbone": options.backbone,
        "locals": "".join(map(str, options.locals)),
        "alpha": options.alpha,
        "device": options.device,
        "matrix_rate": {dtype: matrix_rate(options.device, dtype) for dtype in options.dtype},
        "attention": {dtype: attention_backend(options.device, dtype) for dtype in options.dtype},
    }


def write_profile(options: argparse.Namespace) -> None:
    """A trace of one step of ours in the first mode and size, for chrome://tracing or Perfetto; two runs warm up."""
    step = build_step("ours", settings(options)[0][0])
    for _ in range(2):
        step()
    with profile(acc_events=True) as trace:
        step()
    options.profile.parent.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(options.profile))
    print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def say(message: str) -> None:
    """Progress, apart from the tables."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
