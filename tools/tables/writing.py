"""The tables as Markdown, CSV, JSON and LaTeX."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from runtime.model_card import as_markdown
from runtime.options import METRICS
from tools.tables.experiments import PROTOCOLS, Experiment, Table
from utils import escaped, write_json, write_whole

REPRODUCED_WITHIN = 0.1  # points of top-1
WHY_WITHIN = (
    f"Reproduced: within {REPRODUCED_WITHIN} points, because in float16 rounding decides which of two patches of "
    "nearly equal scores is selected, and so moves single stickers from one machine to another."
)
COLUMNS = (
    "row", "protocol", "val top-1", "top-1", "95 %", "by group", "macro P", "macro R", "macro F1",
    "weighted P", "weighted R", "weighted F1", "mAP", "published", "difference", "samples", "seeds", "parameters",
    "operations", "images/s", "training", "context",
)  # fmt: skip

LATEX_COLUMNS = ("row", "protocol", "top-1", "95 %", "by group", "macro F1", "weighted F1", "mAP", "published")
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "$": r"\$",
        "^": r"\^{}",
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "±": r"$\pm$",
        "{": r"\{",
        "}": r"\}",
        "–": "--",
        "~": r"\~{}",
    }
)

SHARES = ("precision", "recall", "f1")
Outcome = dict[int, dict[str, Any]] | str  # the figures by seed, or why there are none


class Row(NamedTuple):
    """A row of a table, under one protocol, with its outcome, and the command that trains its first seed."""

    experiment: Experiment
    protocol: str
    outcome: Outcome
    command: str = ""


Rows = dict[str, list[Row]]  # by the name of the table


def write_tables(output: Path, tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> None:
    """Writes tables.md, tables.csv, tables.json and tables.tex, each whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "tables.md", markdown(tables, rows, facts).encode(errors="backslashreplace"))
    write_whole(output / "tables.csv", escaped(as_csv(tables, rows, facts)).encode())
    write_whole(output / "tables.tex", latex(tables, rows, facts).encode(errors="backslashreplace"))
    write_json(output / "tables.json", facts | {"tables": [as_json(one, rows[one.name], facts) for one in tables]})


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """The mean over the seeds and, of several, the standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def score_column(columns: Sequence[str]) -> str:
    """The column of the figure that counts: top-1 on test, or on val in tables that leave test out."""
    return "top-1" if "top-1" in columns else "val top-1"


def cells(row: Row, facts: dict[str, Any]) -> dict[str, str]:
    """The cells of a row by their column in COLUMNS, '' for a figure that it lacks."""
    one, outcome, blank = row.experiment, row.outcome, dict.fromkeys(COLUMNS, "")
    own = {"row": one.title, "protocol": row.protocol, "training": one.time}
    own["published"] = "" if one.published is None else f"{one.published:.2f}"
    if isinstance(outcome, str):
        literature = {} if one.script else {"protocol": "", "training": ""}
        return blank | own | literature | {score_column(facts["columns"]): f"not run: {outcome}"}
    runs = list(outcome.values())
    first = runs[0]
    if (metric := first.get("best_metric", "acc1")) != "acc1":
        own["protocol"] += f", by {METRICS[metric]}"
    low, high = first["intervals"]["acc1"]
    own |= {
        "top-1": spread([run["acc1"] for run in runs]),
        "95 %": f"{low:.2f} to {high:.2f}",
        "difference": difference(row, facts),
        "samples": f"{first['samples']:,}",
        "seeds": {"training": " ".join(map(str, outcome)), "the lists": ""}.get(first["from"], "checkpoint"),
    }
    if "mean_average_precision" in first:
        own["mAP"] = spread([100 * run["mean_average_precision"] for run in runs])
    for kind in ("macro", "weighted"):
        for share in SHARES:
            name = f"{kind} {'F1' if share == 'f1' else share[0].upper()}"
            own[name] = spread([100 * run[kind][share] for run in runs])
    for column, name in (("val top-1", "best_val_acc1"), ("by group", "acc1_by_group"), ("training", "minutes")):
        if all(run.get(name) is not None for run in runs):
            own[column] = spread([run[name] for run in runs]) + (" min" if column == "training" else "")
    own["context"] = first.get("context", "")
    if "parameters" in first:
        own["parameters"] = f"{first['parameters'] / 1e6:.1f} M"
        own["operations"] = f"{first['operations'] / 1e9:.3g} G"
        own["images/s"] = f"{first['images_per_second']:.3g}"
    return blank | own


def difference(row: Row, facts: dict[str, Any]) -> str:
    """The measured top-1 less the published one; for a checkpoint, whether it reproduces that."""
    if row.experiment.published is None or not facts["comparable"]:
        return ""
    runs = list(row.outcome.values())
    points = mean(run["acc1"] for run in runs) - row.experiment.published
    if runs[0]["from"] == "training":
        return f"{points:+.2f}"
    return f"{points:+.2f}, {'' if abs(points) <= REPRODUCED_WITHIN + 1e-9 else 'not '}reproduced"


def body(rows: Sequence[Row], facts: dict[str, Any], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Those of the columns in which some row has a figure, and the cells of each row in them."""
    filled = [cells(row, facts) for row in rows]
    used = [column for column in columns if any(row[column] for row in filled)]
    return used, [[row[column] for column in used] for row in filled]


def head(facts: dict[str, Any]) -> str:
    """What was run where and when, and what the figures are."""
    protocols = "; ".join(f"`{name}`: {text}" for name, text in PROTOCOLS.items())
    return (
        f"`{facts['command']}`, {facts['machine']}, {facts['threads']} threads a run, torch {facts['torch']}, "
        f"{facts['date']}, {facts['minutes']:.0f} minutes, without runs that were there already.\n\n"
        f"Percent; mean ± standard deviation over several seeds; 95 %: bootstrap interval of the first seed's top-1 "
        f"over the test samples; val top-1: of the best epoch. Protocols: {protocols}. Operations: a forward pass of "
        f"one image, a multiplication and an addition are two. Images a second: forward, batch of 8, measured on "
        f"{facts['cost_device']} beside other runs. "
        + (
            WHY_WITHIN
            if facts["comparable"]
            else "Published figures are of the paper's data and not comparable with these."
        )
    )


def markdown(tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> str:
    """All tables and, unless they leave test out, the figures by class."""
    parts = [f"# Tables\n\n{head(facts)}"]
    for table in tables:
        sources = sorted({row.source for row in table.rows if row.source})
        note = " ".join([table.note, *(f"Published: {source}." for source in sources)]).strip()
        parts += [f"## {table.title}", note] if note else [f"## {table.title}"]
        parts.append(format_table(*body(rows[table.name], facts, facts["columns"])))
        if "top-1" in facts["columns"]:
            parts += [by_class(row) for row in rows[table.name] if not isinstance(row.outcome, str)]
            reported = [row.experiment for row in rows[table.name] if row.experiment.published_by_class]
            parts += [published_by_class(one) for one in reported]
    return "\n\n".join(parts) + "\n"


def by_class(row: Row) -> str:
    """Precision, recall and F1 of each class, of the first seed."""
    (seed, first), *_ = row.outcome.items()
    lines = [
        [as_markdown(name), *(f"{100 * figures[share]:.2f}" for share in SHARES), str(figures["samples"])]
        for name, figures in first["per_class"].items()
    ]
    title = f"{row.experiment.title}, {row.protocol}, seed {seed}: by class"
    return details(title, ["class", "precision", "recall", "F1", "samples"], lines)


def published_by_class(one: Experiment) -> str:
    """Precision, recall and F1 of each class as somebody published them."""
    lines = [[name, *(f"{share:.2f}" for share in shares)] for name, *shares in one.published_by_class]
    return details(f"{one.title}, {one.source}: by class", ["class", "precision", "recall", "F1"], lines)


def details(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table under a title that opens it."""
    return f"<details><summary>{title}</summary>\n\n{format_table(head, lines)}\n\n</details>"


def as_csv(tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> str:
    """All rows in one table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["table", *facts["columns"]], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows({"table": table.name, **cells(row, facts)} for row in rows[table.name])
    return text.getvalue()


def latex(tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> str:
    """A table environment each (booktabs), with the columns that a paper has room for."""
    score = score_column(facts["columns"])
    names = [name for name in facts["columns"] if name in (*LATEX_COLUMNS, score)]
    parts = [f"% {facts['command']}, {facts['date']}"]
    for table in tables:
        used, lines = body(rows[table.name], facts, names)
        for row, line in zip(rows[table.name], lines, strict=True):
            if isinstance(row.outcome, str):
                line[used.index(score)] = "not run"  # tables.md gives the reason
        content = [" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in [used, *lines]]
        content.insert(1, r"\midrule")
        parts.append(
            f"\\begin{{table}}\n\\caption{{{table.title.translate(LATEX)}}}\n\\begin{{tabular}}{{{'l' * len(used)}}}\n"
            "\\toprule\n" + "\n".join(content) + "\n\\bottomrule\n\\end{tabular}\n\\end{table}"
        )
    return "\n\n".join(parts) + "\n"


def as_json(table: Table, rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """A table with everything that is known of its rows."""
    content = []
    for row in rows:
        failed = isinstance(row.outcome, str)
        outcome = {"not_run": row.outcome} if failed else {"seeds": row.outcome, "difference": difference(row, facts)}
        content.append({**row.experiment._asdict(), "protocol": row.protocol, "command": row.command, **outcome})
    return {"name": table.name, "title": table.title, "rows": content}
