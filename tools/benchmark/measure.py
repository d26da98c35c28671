"""What all benchmarks share: the timing loop, the facts of the machine, Markdown tables and result files."""

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from utils import mistake, reason, write_json

GIB = 2**30
MIB = 2**20
Quartiles = dict[str, float]  # lower, median, upper, rounds
ATTENTION_FLOPS = {  # PyTorch's flop counter does not know the CPU's kernels; the first arguments are shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}


def interleave(
    steps: Mapping[str, Callable[[], float]], *, rounds: int, row_seconds: float = math.inf, warm_up: bool = True
) -> dict[str, Quartiles]:
    """Runs every step once a round, so that a change of the machine's speed affects all rows.

    Args:
        steps: for each row a function that runs it once and returns its seconds.
        row_seconds: a row that has run longer than this is skipped in the remaining rounds.
        warm_up: whether a first round is not counted. A step longer than `row_seconds` is counted even there.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + warm_up):
        for name, step in steps.items():
            if sum(seconds[name]) > row_seconds:
                continue
            taken = step()
            if number or not warm_up or taken > row_seconds:
                seconds[name].append(taken)
    return {name: summarize(values) for name, values in seconds.items()}


def timed(step: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one run."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    began = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - began


def summarize(values: Sequence[float]) -> Quartiles:
    """Median, quartiles and number."""
    quantiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    quartiles = torch.tensor(values, dtype=torch.float64).quantile(quantiles).tolist()
    return dict(zip(("lower", "median", "upper"), quartiles, strict=True)) | {"rounds": len(values)}


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and when the measurement is made, and with which PyTorch."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def where(facts: dict[str, Any]) -> str:
    """The facts of the machine in a line."""
    threads = f"{facts['threads']} thread" + "s" * (facts["threads"] > 1)
    return f"{facts['machine']}, {threads}, torch {facts['torch']}, {facts['date']}"


def spread(seconds: Quartiles, unit: float = 1.0, digits: int = 3) -> str:
    """Median and quartiles as text."""
    lower, median, upper = (f"{seconds[name] / unit:.{digits}f}" for name in ("lower", "median", "upper"))
    return f"{median} ({lower} to {upper})"


def format_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def write_results(path: Path, facts: dict[str, Any], results: Any) -> None:
    """Writes a result file; raises UserError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"facts": facts, "results": results})


def read_results(path: Path) -> dict[str, Any]:
    """The facts and results of a file; raises UserError if it is no result file."""
    expected, remedy = "a result file", "make one with python -m tools.benchmark ... --output"
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise mistake(path, expected, reason(error), remedy) from error
    facts = measured.get("facts") if isinstance(measured, dict) else None
    if not isinstance(facts, dict) or "benchmark" not in facts or "results" not in measured:
        raise mistake(path, f"{expected} with facts and results", "another file", remedy)
    return measured
