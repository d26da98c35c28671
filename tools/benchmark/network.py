"""Compares LORA, LORA-V, TGCA-PVT or TGCA-PVT-V with the textbook form and other networks: time, memory, operations.

    python -m tools.benchmark network --threads 2 --size 224 448 896 --output docs/benchmarks/sizes.json
    python -m tools.benchmark network --device cuda --dtype float16 bfloat16 --batch-size 16 max --compile \\
      --output docs/benchmarks/gpu.json

Rows: ours; the same network with re-attention and fusion as the paper writes them (textbook, models/textbook.py); the
backbone without re-attention and fusion, which is the lower bound; timm's pvt_v2_b2 and resnet50; the networks that
read less than ours (for LORA LORA-V, for TGCA-PVT LORA too) and the text encoder alone. Two images are of one topic.
--compile, --channels-last, --grad-checkpointing and --bfloat16 add rows of ours and the backbone in that form.

Rows that fit into memory together are timed in one process in turns, the others each in its own. Memory and operations
are measured in a process for each row (tools/benchmark/memory.py).
"""

import argparse
import itertools
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from models import NETWORKS, textbook
from models.pvt import BACKBONES
from models.vision import check_image_size
from runtime.setup import keep_freed_memory
from tools.benchmark.measure import GIB, interleave, summarize, timed
from tools.benchmark.memory import alone, largest_batch, memory_limit
from tools.benchmark.rows import VARIANTS, Setting, build_step, row_names
from utils import UserError, naming_flags, printable

MODELS = [name for name in NETWORKS if hasattr(textbook, f"{name}_forward")]
DTYPES = ("float32", "float16", "bfloat16")
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product gives the device's rate


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="lora_v")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="pvt_small")
    parser.add_argument("--locals", type=int, nargs=4, default=[1, 1, 1, 0], metavar="L")
    parser.add_argument("--alpha", type=int, default=8)
    parser.add_argument("--size", type=int, nargs="+", default=[448], help="sides of the images, pixels")
    parser.add_argument("--batch-size", nargs="+", default=["1"], help="images, or max: the most that fit")
    parser.add_argument("--mode", choices=("forward", "training"), nargs="+", default=["forward", "training"])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32"], help="of the forward pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--row-seconds", type=float, default=60, help="skip a row once it has run this long")
    parser.add_argument("--rows", nargs="+", help="the rows to measure; all by default")
    parser.add_argument("--memory-limit", type=float, help="GiB that a row may use; by default what is free")
    parser.add_argument("--compile", action="append_const", dest="variants", const="compiled", default=[])
    parser.add_argument("--channels-last", action="append_const", dest="variants", const="channels-last")
    parser.add_argument("--grad-checkpointing", action="append_const", dest="variants", const="checkpointing")
    parser.add_argument("--bfloat16", action="append_const", dest="variants", const="bfloat16")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The facts and an entry for each row, size and step; raises UserError for flags that do not fit."""
    check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cpu":
        keep_freed_memory()  # as main.py does
    facts = {name: getattr(options, name) for name in ("model", "backbone", "alpha", "device")}
    facts["locals"] = "".join(map(str, options.locals))
    facts["matrix_rate"] = {dtype: matrix_rate(options.device, dtype) for dtype in options.dtype}
    facts["attention"] = {dtype: attention_backend(options.device, dtype) for dtype in options.dtype}
    return facts, measure(options)


def check(options: argparse.Namespace) -> None:
    """Raises UserError for flags that do not fit."""
    for size in options.size:
        try:
            with naming_flags(("alpha", "input_size")):
                check_image_size(size, size, options.alpha)
        except ValueError as error:
            raise UserError(f"--size {size}: {error}") from error
    for batch_size in options.batch_size:
        if batch_size != "max" and not (batch_size.isdigit() and int(batch_size)):
            raise UserError(f"--batch-size {printable(batch_size)}: expected a number of images or max")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    known = {row for mode in options.mode for row in row_names(options.model, mode, VARIANTS)}
    for row in options.rows or ():
        if row not in known:
            raise UserError(f"--rows {printable(row)}: unknown row; expected some of {', '.join(sorted(known))}")


def settings(options: argparse.Namespace) -> list[Setting]:
    """The settings to measure one after another; batch size 0 is the largest that fits."""
    network = {name: getattr(options, name) for name in ("model", "backbone", "alpha", "device")}
    network["locals"] = tuple(options.locals)
    asked = itertools.product(options.dtype, options.batch_size, options.size, options.mode)
    return [
        Setting(**network, size=size, batch_size=0 if number == "max" else int(number), dtype=dtype, mode=mode)
        for dtype, number, size, mode in asked
    ]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each row, size and mode."""
    results = []
    for setting in settings(options):
        known = row_names(options.model, setting.mode, options.variants)
        rows = [row for row in known if not options.rows or row in options.rows]
        limit = options.memory_limit * GIB if options.memory_limit else memory_limit(options.device)
        take = measure_together if setting.batch_size else measure_largest
        results += take(rows, setting, limit, options)
    return results


def measure_together(
    rows: list[str], setting: Setting, limit: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Memory and operations of each row alone, then the time of those that fit, in turns if they fit together."""
    threads, measured = torch.get_num_threads(), {}
    for row in rows:
        say(setting, f"{row}: memory and operations")
        measured[row] = alone(row, setting, threads=threads, limit=limit)
    fitting = [row for row in rows if "refused" not in measured[row]]
    say(setting, "time")
    if bytes_together(measured[row] for row in fitting) < limit:
        steps = {row: partial(timed, build_step(row, setting), setting.device) for row in fitting}
        seconds = interleave(steps, rounds=options.rounds, row_seconds=options.row_seconds)
        for row in fitting:
            measured[row] |= {"seconds": seconds[row], "timed": "in turns"}
    else:
        for row in fitting:
            measured[row] = alone(row, setting, threads=threads, limit=limit, rounds=options.rounds)
    return [entry(row, setting, measured[row]) for row in rows]


def bytes_together(measured: Iterable[dict[str, Any]]) -> int:
    """Bytes that rows need in one process, from what each needs alone."""
    needs = [(one["network_bytes"], one["peak_bytes"] - one["network_bytes"]) for one in measured]
    return sum(network for network, _ in needs) + max((libraries for _, libraries in needs), default=0)


def measure_largest(
    rows: list[str], setting: Setting, limit: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each row alone at the largest batch that fits: together they would not fit."""
    threads, results = torch.get_num_threads(), []
    for row in rows:
        say(setting, f"{row}: largest batch")
        batch_size = largest_batch(row, setting, threads=threads, limit=limit)
        largest = replace(setting, batch_size=max(batch_size, 1))
        measured = alone(row, largest, threads=threads, limit=limit, rounds=options.rounds)
        results.append(entry(row, largest, measured) | {"largest_batch": True})
    return results


def entry(row: str, setting: Setting, measured: dict[str, Any]) -> dict[str, Any]:
    """A row of the results."""
    fields = ("dtype", "size", "mode", "batch_size")
    return {"row": row, **{field: getattr(setting, field) for field in fields}} | measured


def matrix_rate(device: str, dtype: str) -> float:
    """Operations a second of a product of two large square matrices, the median of seven."""
    side = MATRIX_SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    seconds = summarize([timed(lambda: a @ b, device) for _ in range(9)][2:])
    return 2 * side**3 / seconds["median"]


def attention_backend(device: str, dtype: str) -> str:
    """Which kernel `F.scaled_dot_product_attention` chooses for stage 1, by a private function of PyTorch."""
    q, k = (torch.zeros(1, 1, length, 64, device=device, dtype=getattr(torch, dtype)) for length in (3137, 50))
    return SDPBackend(torch._fused_sdp_choice(q, k, k)).name.lower()


def say(setting: Setting, message: str) -> None:
    """Progress, apart from the tables."""
    print(f"{setting.dtype}, {setting.size} px, {setting.mode}, {message}", file=sys.stderr, flush=True)
