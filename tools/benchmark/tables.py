"""The results of the network benchmark as Markdown."""

from collections.abc import Callable
from typing import Any

from tools.benchmark.measure import MIB, format_table, spread, where

MODES = {"forward": "forward", "training": "training step"}
HEADS = ("px", "step", "row", "batch", "seconds (quartiles)", "images/s", "time over ours", "peak memory, MiB")
HEADS += ("network's part", "its weights", "GFLOP", "of the matrix rate")


def network_table(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """What was measured and where, a table of all rows, and a table of how they compare."""
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in facts["matrix_rate"].items())
    kernels = ", ".join(f"{dtype} {kernel}" for dtype, kernel in facts["attention"].items())
    groups: dict[tuple, dict[str, dict[str, Any]]] = {}
    for result in results:
        key = (result["dtype"], result["size"], result["mode"], result.get("largest_batch") or result["batch_size"])
        groups.setdefault(key, {})[result["row"]] = result
    rows = [
        table_row(result, group.get("ours"), facts["matrix_rate"])
        for group in groups.values()
        for result in group.values()
    ]
    parts = [
        f"{network_name(facts)}; {where(facts)}; matrix product: {rates}; attention kernel: {kernels}.",
        format_table(HEADS, rows),
        ratio_table(list(groups.values())),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def network_name(facts: dict[str, Any]) -> str:
    """The network that was measured."""
    return f"{facts['model']}, {facts['backbone']}, locals {facts['locals']}, alpha {facts['alpha']}"


def step_name(result: dict[str, Any]) -> str:
    """Forward pass or training step, and its type."""
    return f"{MODES[result['mode']]}, {result['dtype']}"


def table_row(result: dict[str, Any], ours: dict[str, Any] | None, matrix_rate: dict[str, float]) -> list[str]:
    """One row; a figure that was not measured is a dash."""
    cells = [str(result["size"]), step_name(result), result["row"], str(result["batch_size"])]
    if "refused" in result:
        return [*cells, f"does not fit: {result['refused']}", *[""] * (len(HEADS) - len(cells) - 1)]
    cells += [spread(result["seconds"]), f"{1 / image_seconds(result):.2f}"]
    over = ours and "seconds" in ours
    cells.append(f"{image_seconds(result) / image_seconds(ours):.2f}" if over else "-")
    cells += [f"{result[name] / MIB:,.0f}" for name in ("peak_bytes", "network_bytes", "weight_bytes")]
    if not result["flops"]:
        return [*cells, "-", "-"]
    share = result["flops"] / result["seconds"]["median"] / matrix_rate[result["dtype"]]
    share_text = "-" if result["row"].endswith("bfloat16") else f"{100 * share:.0f} %"  # whose rate is not measured
    return [*cells, f"{result['flops'] / 1e9:,.1f}", share_text]


def image_seconds(result: dict[str, Any]) -> float:
    """The median time of an image."""
    return result["seconds"]["median"] / result["batch_size"]


def ratio_table(groups: list[dict[str, dict[str, Any]]]) -> str:
    """How the rows compare, a line for each size and step; empty if nothing can be compared."""
    lines = []
    for group in groups:
        first = next(iter(group.values()))
        batch = "largest" if first.get("largest_batch") else str(first["batch_size"])
        lines.append(({"px": str(first["size"]), "step": step_name(first), "batch": batch}, ratios(group)))
    heads = list(dict.fromkeys(head for _, values in lines for head in values))
    if not heads:
        return ""
    rows = [[*labels.values(), *(values.get(head, "-") for head in heads)] for labels, values in lines]
    return format_table([*lines[0][0], *heads], rows)


def ratios(group: dict[str, dict[str, Any]]) -> dict[str, str]:
    """How the rows of one size and step compare, in the time of an image if nothing else is said."""
    rows = {name: result for name, result in group.items() if "seconds" in result}
    values: dict[str, str] = {}

    def add(head: str, above: str, below: str, measure: Callable = image_seconds) -> None:
        if above in rows and below in rows:
            values[head] = f"{measure(rows[above]) / measure(rows[below]):.3f}"

    add("textbook / ours", "textbook", "ours")
    add("ours / backbone", "ours", "backbone")
    add("ours / pvt_v2_b2", "ours", "pvt_v2_b2")
    add("textbook / ours bfloat16", "textbook", "ours bfloat16")
    if "lora" in rows:
        add("ours / lora", "ours", "lora")
    elif "text encoder" not in rows:
        add("ours / lora_v", "ours", "lora_v")
    elif {"ours", "lora_v"} <= rows.keys():
        parts = image_seconds(rows["lora_v"]) + image_seconds(rows["text encoder"])
        values["LORA / (LORA-V + text encoder)"] = f"{image_seconds(rows['ours']) / parts:.3f}"
    if {"ours", "backbone"} <= rows.keys():
        share = 1 - image_seconds(rows["backbone"]) / image_seconds(rows["ours"])
        values["share of re-attention and fusion"] = f"{100 * share:.1f} %"
        if rows["ours"]["batch_size"] == rows["backbone"]["batch_size"]:
            add("memory: ours / backbone", "ours", "backbone", lambda result: result["peak_bytes"])
            head = "memory without libraries and weights"
            add(head, "ours", "backbone", lambda result: result["network_bytes"] - result["weight_bytes"])
    return values
