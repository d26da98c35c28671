"""The benchmark's results as Markdown."""

from typing import Any

GIB = 2**30
MIB = 2**20


def format_results(measured: dict[str, Any]) -> str:
    """One benchmark file as Markdown: a heading line, then a table for each size and mode, then the targets' ratios."""
    facts = measured["facts"]
    parts = [
        f"`{facts['command']}`",
        f"{facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, {facts['dtype']}, "
        f"{facts['date']}; matrix rate {facts['matrix_rate'] / 1e9:,.0f} GFLOP/s; attention: {facts['attention']}.",
    ]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for result in measured["results"]:
        groups.setdefault((result["size"], result["mode"]), []).append(result)
    for (size, mode), results in groups.items():
        parts.append(format_table(size, mode, results, facts))
    parts.append(format_ratios(groups))
    return "\n\n".join(part for part in parts if part) + "\n"


def format_table(size: int, mode: str, results: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The rows of one size and mode."""
    name = {"forward": "forward", "training": "training step"}[mode]
    lines = [
        f"**{facts['model']}, locals {facts['locals']}, alpha {facts['alpha']}, {size} px, {name}**",
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


def format_ratios(groups: dict[tuple[int, str], list[dict[str, Any]]]) -> str:
    """What the rows say about each other, for each size and mode with ours and something to compare it with."""
    lines = []
    for (size, mode), results in groups.items():
        rows = {result["row"]: result for result in results}
        for name, value in ratios(rows).items():
            lines.append(f"| {size} px, {mode} | {name} | {value} |")
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
    for variant in ("compiled", "channels-last", "checkpointing"):
        if f"ours {variant}" in times:
            found[f"time, ours {variant} / ours"] = f"{times[f'ours {variant}'] / times['ours']:.3f}"
    return found
