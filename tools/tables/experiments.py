"""The experiments behind the tables: what each trains on which data, what was published for it, and the settings."""

import runpy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from utils import UserError, printable, shown

DATA_FOLDERS = {"SER": "SER_Dataset", "SER_V": "SER_Dataset", "FI": "FI", "EmotionROI": "EmotionROI"}
PROTOCOLS = {"published": "best epoch on test", "val": "epoch chosen on val, test once"}


class Experiment(NamedTuple):
    """A row of a table: a network trained on a data set.

    Attributes:
        name: unique over all tables; names its folder of runs, and its checkpoint in --weights, `<name>.pth`.
        title: what the tables call it.
        script: main.py or main_V.py; '' for a figure of the literature, which this code cannot compute.
        dataset: as --dataset; folder: its folder below --data-root, '' for the one that the settings name.
        model: as --model, '' for the script's own; `hog` for logistic regression on HOG features (tools/baselines.py);
            `annotator` and `annotator_others` for what one of SER30K's annotators says (tools/tables/annotators.py).
        backbone: of LORA and PVT; its config is configs/pvt/<backbone>.py, its weights are <backbone>.pth in --weights.
        flags: what differs from the published settings, as on the command line.
        start: what training starts from: `pvt` (--visfinetune), `timm` (--pretrained), or '' for random weights.
        protocols: how the epoch is chosen, one row each: names of PROTOCOLS.
        published, source: top-1 in percent and who published it; None and '' if nobody did.
        published_by_class: each class with its precision, recall and F1 in percent; "macro" and "weighted" means too.
        time: what is known of the time that training takes.
        same_as: another experiment, whose runs fill this row too.
        evaluation: flags with which the checkpoints of `same_as` are evaluated for this row, on the same split.
    """

    name: str
    title: str
    script: str = "main_V.py"
    dataset: str = "SER_V"
    folder: str = ""
    model: str = ""
    backbone: str = "pvt_small"
    flags: str = ""
    start: str = "pvt"
    protocols: tuple[str, ...] = ("val",)
    published: float | None = None
    source: str = ""
    published_by_class: tuple[tuple[str, float, float, float], ...] = ()
    time: str = "not measured"
    same_as: str = ""
    evaluation: str = ""


class Table(NamedTuple):
    """A table: its name (that of its file), its title, a note and its rows."""

    name: str
    title: str
    note: str
    rows: list[Experiment]


class Settings(NamedTuple):
    """How the experiments are run: as published, or on another set (configs/paper_demo.py, configs/demo_table.py).

    Attributes:
        config: the config file of every run, '' for the backbone's own; flags: further flags of every run.
        data: the folder below --data-root of each data set.
        models: replaces a model, or a backbone; None if there is no small one.
        same: replaces an experiment's `same_as`.
        is_published: whether figures are comparable with the published ones. If so, training starts from the weights
            in --weights, and a checkpoint there is evaluated in place of a training.
        columns: the columns of the tables, all if empty.
        group: gives the group of an image; the column "by group" is the top-1 with each group counted alike.
    """

    config: str = ""
    flags: str = ""
    data: dict[str, str] = DATA_FOLDERS
    models: dict[str, str | None] = {}  # noqa: RUF012
    same: dict[str, str] = {}  # noqa: RUF012
    is_published: bool = True
    columns: tuple[str, ...] = ()
    group: Callable[[str], str] | None = None


def read_tables(folder: Path) -> list[Table]:
    """The tables of a folder, a Python file with `table = dict(...)` each, in the order of their names.

    Raises:
        UserError: no or wrong files, two experiments of one name, or `same_as` without its experiment.
    """
    files = sorted(folder.glob("*.py"))
    if not files:
        raise UserError(f"{printable(folder)}: expected files of experiments, *.py, found none")
    tables = []
    for file in files:
        with run_file(file, "table = dict(title, note, rows)") as values:
            tables.append(build(file.stem, **values["table"]))
    return checked(tables, folder)


def read_settings(file: Path | None) -> tuple[Settings, list[Table]]:
    """The settings of a file with `settings = dict(...)`, and its own `tables = [dict(...), ...]` if it has any.

    Without a file, the published settings. Raises UserError as `read_tables`.
    """
    if file is None:
        return Settings(), []
    with run_file(file, "settings = dict(...) and perhaps tables = [dict(name, title, note, rows), ...]") as values:
        settings = Settings(**{"is_published": False, **values["settings"]})
        tables = [build(**table) for table in values.get("tables", [])]
    return settings, checked(tables, file)


@contextmanager
def run_file(file: Path, expected: str) -> Iterator[dict[str, Any]]:
    """The variables of a Python file; what goes wrong with them becomes a UserError."""
    try:
        yield runpy.run_path(str(file))
    except Exception as error:  # the file is a program: anything may go wrong in it
        raise UserError(f"{printable(file)}: expected {expected}, found {error!r}") from error


def build(name: str, title: str, rows: Sequence[dict[str, Any]], note: str = "") -> Table:
    """A table of dictionaries."""
    return Table(name, title, note, [Experiment(**row) for row in rows])


def checked(tables: list[Table], source: Path) -> list[Table]:
    """The tables, if each experiment has its own name and each `same_as` names one; else raises UserError."""
    names = [row.name for table in tables for row in table.rows]
    twice = {name for name in names if names.count(name) > 1}
    lost = {row.same_as for table in tables for row in table.rows if row.same_as} - set(names)
    if twice or lost:
        raise UserError(f"{printable(source)}: experiments named twice or not at all: {shown(sorted(twice | lost))}")
    return tables


def choose(tables: Sequence[Table], only: Sequence[str]) -> list[Table]:
    """The tables, or rows, of these names, or all if there are no names. Raises UserError for an unknown name."""
    if not only:
        return list(tables)
    known = {table.name for table in tables} | {row.name for table in tables for row in table.rows}
    if unknown := sorted(set(only) - known):
        raise UserError(f"--only {shown(unknown)}: expected names of tables or rows: {', '.join(sorted(known))}")
    chosen = [
        table._replace(rows=[row for row in table.rows if table.name in only or row.name in only]) for table in tables
    ]
    return [table for table in chosen if table.rows]


def originals(tables: Sequence[Table]) -> dict[str, Experiment]:
    """Every experiment by its name."""
    return {row.name: row for table in tables for row in table.rows}
