"""The tables as Markdown, CSV, JSON and LaTeX."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from tools.tables.experiments import PROTOCOLS, Experiment, Table
from utils import write_json, write_whole

REPRODUCED_WITHIN = 0.02  # points of top-1

COLUMNS = (
    "row", "protocol", "top-1", "95 %", "macro P", "macro R", "macro F1", "weighted P", "weighted R", "weighted F1",
    "mAP", "published", "difference", "samples", "seeds", "parameters", "operations", "images/s", "training",
)  # fmt: skip

LATEX = str.maketrans(
    {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "{": r"\{", "}": r"\}", "–": "--", "~": r"\~{}"}
)

Outcome = dict[int, dict[str, Any]] | str  # the figures by seed, or why there are none


class Row(NamedTuple):
    """A row of a table, under one protocol, with what came out, and the command that trains its first seed."""

    experiment: Experiment
    protocol: str
    outcome: Outcome
    command: str = ""


Rows = dict[str, list[Row]]  # by the name of the table


def write_tables(output: Path, tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> None:
    """Writes tables.md, tables.csv, tables.json and tables.tex, each whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "tables.md", markdown(tables, rows, facts).encode())
    write_whole(output / "tables.csv", as_csv(tables, rows, facts).encode())
    write_whole(output / "tables.tex", latex(tables, rows, facts).encode())
    write_json(output / "tables.json", facts | {"tables": [as_json(one, rows[one.name], facts) for one in tables]})


def cells(row: Row, facts: dict[str, Any]) -> list[str]:
    """The cells of a row, as COLUMNS names them."""
    one, outcome = row.experiment, row.outcome
    published = "" if one.published is None else f"{one.published:.2f}"
    if isinstance(outcome, str):
        protocol, time = (row.protocol, one.time) if one.script else ("", "")
        reason = f"not run: {outcome}".replace("|", "/")
        return [one.title, protocol, reason, *[""] * 8, published, *[""] * 6, time]
    runs = list(outcome.values())
    first = runs[0]
    shares = [[run[kind][name] for run in runs] for kind in ("macro", "weighted") for name in SHARES]
    shares.append([run["mean_average_precision"] for run in runs])
    low, high = first["intervals"]["acc1"]
    return [
        one.title,
        row.protocol,
        spread([run["acc1"] for run in runs]),
        f"{low:.2f} to {high:.2f}",
        *(spread([100 * value for value in values]) for values in shares),
        published,
        difference(row, facts),
        f"{first['samples']:,}",
        " ".join(map(str, outcome)) if first["from"] == "training" else "checkpoint",
        f"{first['parameters'] / 1e6:.1f} M",
        f"{first['operations'] / 1e9:.3g} G",
        f"{first['images_per_second']:.3g}",
        f"{mean(run['minutes'] for run in runs):.1f} min" if "minutes" in first else one.time,
    ]


SHARES = ("precision", "recall", "f1")


def spread(values: Sequence[float]) -> str:
    """The mean over the seeds and, of several, the standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def difference(row: Row, facts: dict[str, Any]) -> str:
    """What was measured less what was published; of a checkpoint, whether that reproduces it."""
    if row.experiment.published is None or not facts["comparable"]:
        return ""
    runs = list(row.outcome.values())
    points = mean(run["acc1"] for run in runs) - row.experiment.published
    if runs[0]["from"] == "training":
        return f"{points:+.2f}"
    return f"{points:+.2f}, {'' if abs(points) <= REPRODUCED_WITHIN else 'not '}reproduced"


def head(facts: dict[str, Any]) -> str:
    """What was run where and when, and what the figures are."""
    protocols = "; ".join(f"`{name}`: {text}" for name, text in PROTOCOLS.items())
    return (
        f"`{facts['command']}`, {facts['machine']}, {facts['threads']} threads a run, torch {facts['torch']}, "
        f"{facts['date']}, {facts['minutes']:.0f} minutes, without runs that were there already.\n\n"
        f"Percent; mean ± standard deviation over the seeds where there are several; 95 %: bootstrap interval of the "
        f"first seed's top-1 over the test samples. Protocols: {protocols}. Operations: a forward pass of one image, "
        f"a multiplication and an addition are two. Images a second: forward, batch of 8, measured on "
        f"{facts['cost_device']} beside other runs. "
        + ("" if facts["comparable"] else "Published figures are of the paper's data and not comparable with these.")
    )


def markdown(tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> str:
    """All tables with the figures by class."""
    parts = [f"# Tables\n\n{head(facts)}"]
    for table in tables:
        lines = [" | ".join(COLUMNS), "|".join(["---"] * len(COLUMNS))]
        lines += [" | ".join(cells(row, facts)) for row in rows[table.name]]
        body = "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)
        sources = sorted({row.source for row in table.rows if row.source})
        note = " ".join([table.note, *(f"Published: {source}." for source in sources)]).strip()
        parts.append(f"## {table.title}\n\n{note}\n\n{body}" if note else f"## {table.title}\n\n{body}")
        parts += [by_class(row) for row in rows[table.name] if not isinstance(row.outcome, str)]
    return "\n\n".join(parts) + "\n"


def by_class(row: Row) -> str:
    """Precision, recall and F1 of each class, of the first seed."""
    (seed, first), *_ = row.outcome.items()
    lines = ["| class | precision | recall | F1 | samples |", "|---|---|---|---|---|"]
    for name, one in first["per_class"].items():
        shares = " | ".join(f"{100 * one[share]:.2f}" for share in SHARES)
        lines.append(f"| {name} | {shares} | {one['samples']} |")
    title = f"{row.experiment.title}, {row.protocol}, seed {seed}: by class"
    return f"<details><summary>{title}</summary>\n\n" + "\n".join(lines) + "\n\n</details>"


def as_csv(tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> str:
    """All rows in one table."""
    text = io.StringIO()
    table_writer = csv.writer(text, lineterminator="\n")
    table_writer.writerow(["table", *COLUMNS])
    for table in tables:
        table_writer.writerows([table.name, *cells(row, facts)] for row in rows[table.name])
    return text.getvalue()


def latex(tables: Sequence[Table], rows: Rows, facts: dict[str, Any]) -> str:
    """A table environment each (booktabs), with the columns that a paper has room for."""
    names = ("row", "protocol", "top-1", "95 %", "macro F1", "weighted F1", "mAP", "published")
    places = [COLUMNS.index(name) for name in names]
    parts = [f"% {facts['command']}, {facts['date']}"]
    for table in tables:
        lines = [" & ".join(name.translate(LATEX) for name in names) + r" \\", r"\midrule"]
        for row in rows[table.name]:
            found = cells(row, facts)
            if isinstance(row.outcome, str):
                found[COLUMNS.index("top-1")] = "not run"  # the reason stands in tables.md
            lines.append(" & ".join(found[place].translate(LATEX) for place in places) + r" \\")
        body = "\n".join(lines)
        parts.append(
            f"\\begin{{table}}\n\\caption{{{table.title.translate(LATEX)}}}\n\\begin{{tabular}}{{{'l' * len(names)}}}\n"
            f"\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def as_json(table: Table, rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """A table with everything that is known of its rows."""
    content = [
        {
            **row.experiment._asdict(),
            "protocol": row.protocol,
            "command": row.command,
            **({"not_run": row.outcome} if isinstance(row.outcome, str) else {"seeds": row.outcome}),
            **({} if isinstance(row.outcome, str) else {"difference": difference(row, facts)}),
        }
        for row in rows
    ]
    return {"name": table.name, "title": table.title, "rows": content}
