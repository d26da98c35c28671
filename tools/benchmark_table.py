"""The benchmark's results as Markdown."""

from typing import Any

from tools.benchmark_rows import VARIANTS

GIB = 2**30
MIB = 2**20


def format_results(measured: dict[str, Any]) -> str:
    """One benchmark file as Markdown: the command and where it ran, a table for each setting, and what they say."""
    facts = measured["facts"]
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in facts["matrix_rate"].items())
    kernels = ", ".join(f"{dtype} {kernel}" for dtype, kernel in facts["attention"].items())
    parts = [
        f"`{facts['command']}`",
        f"{facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}; "
        f"matrix product: {rates}; attention kernel: {kernels}.",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in measured["results"]:
        groups.setdefault(heading(result), []).append(result)
    parts += [format_table(f"{facts_line(facts)}, {name}", results) for name, results in groups.items()]
    parts.append(format_ratios(groups))
    return "\n\n".join(part for part in parts if part) + "\n"


def facts_line(facts: dict[str, Any]) -> str:
    """The network that was measured."""
    return f"{facts['model']}, {facts['backbone']}, locals {facts['locals']}, alpha {facts['alpha']}"


def heading(result: dict[str, Any]) -> str:
    """What the rows of one table have in common."""
    mode = {"forward": "forward", "training": "training step"}[result["mode"]]
    batch = "largest batch" if result.get("largest_batch") else f"batch {result['batch_size']}"
    return f"{result['size']} px, {batch}, {result['dtype']}, {mode}"


def format_table(title: str, results: list[dict[str, Any]]) -> str:
    """The rows of one size and mode."""
    lines = [
        f"**{title}**",
        "",
        "| row | batch | seconds (quartiles) | images/s | time over ours | peak memory, MiB | of it network "
        "| of it weights | GFLOP | of the matrix rate |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = next((result for result in results if result["row"] == "ours" and "seconds" in result), None)
    lines += [format_row(result, ours) for result in results]
    return "\n".join(lines)


def format_row(result: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """One row; figures that were not taken say so."""
    if "refused" in result:
        return f"| {result['row']} | {result['batch_size']} | does not fit: {result['refused']} | | | | | | | |"
    missing = "not measured"
    seconds = result.get("seconds")
    time = f"{seconds['median']:.3f} ({seconds['lower']:.3f} to {seconds['upper']:.3f})" if seconds else missing
    speed = f"{result['batch_size'] / seconds['median']:.2f}" if seconds else missing
    over = missing
    if seconds and ours:
        image, our_image = (r["seconds"]["median"] / r["batch_size"] for r in (result, ours))
        over = f"{image / our_image:.2f}"
    peak = f"{result['peak_bytes'] / MIB:,.0f}" if "peak_bytes" in result else missing
    network = f"{result['network_bytes'] / MIB:,.0f}" if "network_bytes" in result else missing
    weights = f"{result['weight_bytes'] / MIB:,.0f}" if "weight_bytes" in result else missing
    flops = f"{result['flops'] / 1e9:,.1f}" if result.get("flops") else missing
    share = f"{100 * result['matrix_share']:.0f} %" if result.get("matrix_share") else missing
    cells = [result["row"], str(result["batch_size"]), time, speed, over, peak, network, weights, flops, share]
    return f"| {' | '.join(cells)} |"


def format_ratios(groups: dict[str, list[dict[str, Any]]]) -> str:
    """What the rows say about each other, for each table with ours and something to compare it with."""
    lines = []
    for name, results in groups.items():
        for ratio, value in ratios({result["row"]: result for result in results}).items():
            lines.append(f"| {name} | {ratio} | {value} |")
    return "\n".join(["| | ratio | value |", "|---|---|---|", *lines]) if lines else ""


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The figures of the targets, as text, as far as their rows were measured."""
    times = {name: r["seconds"]["median"] / r["batch_size"] for name, r in rows.items() if "seconds" in r}
    peaks = {name: r["peak_bytes"] for name, r in rows.items() if "peak_bytes" in r}
    rest = {name: r["network_bytes"] - r["weight_bytes"] for name, r in rows.items() if "network_bytes" in r}
    found = {}
    if "ours" not in times:
        return found
    if "textbook" in times:
        found["time, textbook / ours"] = f"{times['textbook'] / times['ours']:.2f}"
    if "backbone" in times:
        found["time, ours / backbone alone"] = f"{times['ours'] / times['backbone']:.3f}"
        share = 100 * (1 - times["backbone"] / times["ours"])
        found["share of re-attention and fusion in ours"] = f"{share:.1f} %"
    if {"ours", "backbone"} <= peaks.keys() and rows["ours"]["batch_size"] == rows["backbone"]["batch_size"]:
        found["peak memory, ours / backbone alone"] = f"{peaks['ours'] / peaks['backbone']:.3f}"
        found["of it network without weights, ours / backbone alone"] = f"{rest['ours'] / rest['backbone']:.3f}"
    if "pvt_v2_b2" in times:
        found["time, ours / pvt_v2_b2"] = f"{times['ours'] / times['pvt_v2_b2']:.2f}"
    if {"lora_v", "text encoder"} <= times.keys():
        both = times["lora_v"] + times["text encoder"]
        found["time, LORA / (LORA-V + text encoder)"] = f"{times['ours'] / both:.3f}"
    if {"textbook", "ours bfloat16"} <= times.keys():
        found["time, textbook / ours bfloat16"] = f"{times['textbook'] / times['ours bfloat16']:.2f}"
    for variant in VARIANTS:
        if f"ours {variant}" in times:
            found[f"time, ours {variant} / ours"] = f"{times[f'ours {variant}'] / times['ours']:.3f}"
    return found
