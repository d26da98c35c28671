"""The experiments of configs/paper: what each trains on what, and what was published for it."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils import UserError, printable, shown

DATA_FOLDERS = {"SER": "SER_Dataset", "SER_V": "SER_Dataset", "FI": "FI", "EmotionROI": "EmotionROI"}

PROTOCOLS = {"published": "best epoch on test", "val": "epoch chosen on val, test once"}


class Experiment(NamedTuple):
    """A row of a table: a network trained on a data set.

    Attributes:
        name: unique over all tables; of its folder of runs, and of a checkpoint in --weights, `<name>.pth`.
        title: what the tables call it.
        script: main.py or main_V.py; '' for a figure of the literature, which this code cannot make.
        dataset: as --dataset has it; model: as --model has it, '' for the script's own.
        backbone: of LORA and PVT; its config is configs/pvt/<backbone>.py, its weights are <backbone>.pth in --weights.
        flags: what differs from the published settings, as on the command line.
        start: what training starts from: `pvt` (--visfinetune), `timm` (--pretrained), or '' for nothing.
        protocols: how the epoch is chosen, a row each: names of PROTOCOLS.
        published, source: top-1 in percent and where it stands; None and '' where none is known.
        time: what is known of how long training takes.
        same_as: another experiment that this one is, in another table.
    """

    name: str
    title: str
    script: str = "main_V.py"
    dataset: str = "SER_V"
    model: str = ""
    backbone: str = "pvt_small"
    flags: str = ""
    start: str = "pvt"
    protocols: tuple[str, ...] = ("val",)
    published: float | None = None
    source: str = ""
    time: str = "not measured"
    same_as: str = ""


class Table(NamedTuple):
    """A table: its name, which is its file's, its title, what to say of it, and its rows."""

    name: str
    title: str
    note: str
    rows: list[Experiment]


class Settings(NamedTuple):
    """How the experiments are run: as published, or in small on another set (configs/paper_demo.py).

    Attributes:
        config: the config file of every run, '' for the backbone's own; flags: what every run has besides.
        data: the folder below --data-root of each data set.
        models: takes the place of a model, or of a backbone; None where there is no small one.
        is_published: whether figures may be compared with the published ones.
        same: takes the place of an experiment's `same_as`.
    """

    config: str = ""
    flags: str = ""
    data: dict[str, str] = DATA_FOLDERS
    models: dict[str, str | None] = {}  # noqa: RUF012
    same: dict[str, str] = {}  # noqa: RUF012
    is_published: bool = True


def read_tables(folder: Path) -> list[Table]:
    """The tables of a folder, a Python file with `table = dict(...)` each, in the order of their names.

    Raises:
        UserError: a file that is none, or two experiments of one name.
    """
    files = sorted(folder.glob("*.py"))
    if not files:
        raise UserError(f"{printable(folder)}: expected files of experiments, *.py, found none")
    tables = [read_table(file) for file in files]
    names = [row.name for table in tables for row in table.rows]
    twice = {name for name in names if names.count(name) > 1}
    lost = {row.same_as for table in tables for row in table.rows if row.same_as} - set(names)
    if twice or lost:
        raise UserError(f"{printable(folder)}: experiments named twice or not at all: {shown(sorted(twice | lost))}")
    return tables


def read_table(file: Path) -> Table:
    """One table; raises UserError."""
    try:
        content = dict(runpy.run_path(str(file))["table"])
        rows = [Experiment(**row) for row in content.pop("rows")]
        return Table(name=file.stem, rows=rows, **{"note": "", **content})
    except Exception as error:  # the file is a program: anything may go wrong in it
        raise UserError(f"{printable(file)}: expected table = dict(title, note, rows), found {error!r}") from error


def read_settings(file: Path | None) -> Settings:
    """The settings of a file with `settings = dict(...)`, or the published ones; raises UserError."""
    if file is None:
        return Settings()
    try:
        return Settings(**{"is_published": False, **runpy.run_path(str(file))["settings"]})
    except Exception as error:  # as above
        raise UserError(f"{printable(file)}: expected settings = dict(...), found {error!r}") from error


def choose(tables: Sequence[Table], only: Sequence[str]) -> list[Table]:
    """The tables, or rows, whose names are given; all where none is. Raises UserError for an unknown name."""
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
