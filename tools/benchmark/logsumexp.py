"""Compares re-attention with and without the log-sum-exp of the fused kernels.

    python -m tools.benchmark logsumexp --device cuda --dtype float16 --batch-size 16

`models.attention` takes the log-sum-exp from the CPU's kernel. CUDA's kernels return it through private functions of
PyTorch alone; without it re-attention computes the sums again. A row is a stage of PVT-small: the attention of its
blocks and the scores of its patches, without gradient. The difference is the largest between both scores, relative to
the largest score.
"""

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.attention import AttentionMap, attend
from models.pvt import BACKBONES
from models.reattention import class_token_scores
from runtime.option_types import positive_int
from tools.benchmark.measure import Quartiles, format_table, interleave, spread, timed, where
from utils import UserError

CONFIG = BACKBONES["pvt_small"]
STAGES = (1, 2, 3)  # those of --locals 1110


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), nargs="+", default=["float16"])
    parser.add_argument("--size", type=positive_int, default=448, help="side of the images, a multiple of 32")
    parser.add_argument("--batch-size", type=positive_int, default=16)
    parser.add_argument("--rounds", type=positive_int, default=7)


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The facts and an entry for each stage and type; raises UserError for flags that do not fit."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if options.size % 32:
        raise UserError(f"--size {options.size}: expected a multiple of 32")
    results = [compare(stage, dtype, options) for dtype in options.dtype for stage in STAGES]
    return {"size": options.size, "batch_size": options.batch_size}, results


def compare(stage: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """The seconds of both forms and how their scores differ."""
    torch.manual_seed(0)
    side = options.size // 2 ** (stage + 1)
    heads, channels = CONFIG.num_heads[stage - 1], CONFIG.embed_dims[stage - 1] // CONFIG.num_heads[stage - 1]
    lengths = [side**2 + 1, *[(side // CONFIG.reductions[stage - 1]) ** 2 + 1] * 2]
    tokens = [
        torch.randn(options.batch_size, heads, length, channels, device=options.device, dtype=getattr(torch, dtype))
        for length in lengths
    ]
    forms = {name: partial(scores, *tokens, stage, name) for name in ("sums again", "log-sum-exp")}
    with torch.no_grad():
        again, given = (form().float() for form in forms.values())
        seconds = interleave(
            {name: partial(timed, form, options.device) for name, form in forms.items()}, rounds=options.rounds
        )
    difference = ((again - given).abs().max() / again.abs().max()).item()
    return {"stage": stage, "dtype": dtype, "seconds": seconds, "difference": difference}


def scores(queries: Tensor, keys: Tensor, values: Tensor, stage: int, form: str) -> Tensor:
    """The attention of a stage's blocks, one map for all of them, and its patches' scores (B, heads, N - 1)."""
    maps = []
    for _ in range(CONFIG.depths[stage - 1]):
        if form == "log-sum-exp":
            maps.append(AttentionMap(queries, keys, kernel_logsumexp(queries, keys, values)))
        else:
            attend(queries, keys, values)
            maps.append(AttentionMap(queries, keys, None))
    return class_token_scores(maps, last_stage=False)


def kernel_logsumexp(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The log-sum-exp (B, heads, N) of the kernel that `F.scaled_dot_product_attention` would choose."""
    aten = torch.ops.aten
    if queries.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values)[1]
    if queries.dtype == torch.float32:
        found = aten._scaled_dot_product_efficient_attention(queries, keys, values, None, True)[1]
    else:
        found = aten._scaled_dot_product_flash_attention(queries, keys, values)[1]
    return found[..., : queries.shape[2]]  # one kernel rounds the rows up to its blocks


def logsumexp_table(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """A line for each stage and type."""
    heads = ["type", "stage", "sums again, ms (quartiles)", "log-sum-exp, ms (quartiles)", "gain", "difference"]
    rows = []
    for result in results:
        again, given = (result["seconds"][name] for name in ("sums again", "log-sum-exp"))
        gain, difference = f"{again['median'] / given['median']:.2f}", f"{result['difference']:.1e}"
        times = [spread(again, 1e-3), spread(given, 1e-3)]
        rows.append([result["dtype"], str(result["stage"]), *times, gain, difference])
    return f"{facts['size']} px, batch {facts['batch_size']}; {where(facts)}.\n\n{format_table(heads, rows)}\n"


def total_gain(results: list[dict[str, Any]]) -> dict[str, float]:
    """For each type the time without over that with the log-sum-exp, of all stages together."""

    def total(dtype: str, form: str) -> float:
        rows: list[dict[str, Quartiles]] = [result["seconds"] for result in results if result["dtype"] == dtype]
        return sum(row[form]["median"] for row in rows)

    types = dict.fromkeys(result["dtype"] for result in results)
    return {dtype: total(dtype, "sums again") / total(dtype, "log-sum-exp") for dtype in types}
