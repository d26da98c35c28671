"""A user's own data: images in class folders, or a table with a line for each image."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from readers.annotations import (
    GIVE_ROOT,
    Entry,
    Sample,
    check_folder,
    class_file_entry,
    collect,
    in_class_folders,
    names_in,
)
from readers.files import (
    Report,
    UnknownLabel,
    check_type,
    entry_mistake,
    ignore,
    read_json,
    read_text,
    stop,
)
from utils import listed, mistake, typed

COLUMNS = ("path", "label", "split")  # and, if there are texts, text
OWN_SPLITS = ("train", "val", "test")
FOLDER_TEXTS = "texts.json"  # of class folders: path below the data set's folder to text


def table_rows(file: Path, report: Report, required: Sequence[str] = COLUMNS) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file that have what they must, with the numbers of their lines, the header's being 1.

    Args:
        required: the columns that it must have, in which no cell is empty.

    Raises:
        UserError: a file that is missing or no table; a wrong row goes to `report`.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), restkey="more", restval="")
    try:
        columns = reader.fieldnames or []
        lacking = sorted(set(required).difference(columns))
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if lacking or twice:
            found = f"none of the name {listed(lacking)}" if lacking else f"several of the name {listed(twice)}"
            raise mistake(file, f"a table with the columns {', '.join(required)}", found, "name the columns in line 1")
        for row in reader:
            where = f"line {reader.line_num}"
            if "more" in row or not all(row[name] for name in required):
                expected = f"a {', a '.join(required[:-1])} and a {required[-1]}"
                report(entry_mistake(file, where, expected, typed(list(row.values()))))
            elif "split" in required and row["split"] not in OWN_SPLITS:
                report(entry_mistake(file, where, "the split train, val or test", typed(row["split"])))
            elif not row["label"].isprintable():  # such as two lines, after a quote that is not closed
                report(entry_mistake(file, where, "a label of printable characters", typed(row["label"])))
            else:
                yield reader.line_num, row
    except csv.Error as error:
        raise mistake(file, "a CSV file", f"{error} at line {reader.line_num}", "mend the file") from error


def table_classes(file: Path, rows: Iterable[tuple[int, dict[str, str]]]) -> tuple[str, ...]:
    """The labels of a table's split train, sorted; raises UserError where there are none."""
    names = sorted({row["label"] for _, row in rows if row["split"] == "train"})
    if not names:
        raise mistake(file, "lines of the split train", "none", "complete the table")
    return tuple(names)


def read_folder(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split, `train`, `val` or `test`, of images in class folders: `<root>/<split>/<class>/<image>`.

    The folders of train are the classes (`class_names`). The other splits may lack some of them; every file in them is
    an image, hidden ones excepted. Texts are in `<root>/texts.json`, where there is one: an object from an image's
    path, as in train/happy/1.png, to its text.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    root = check_folder(Path(root), "the data set's folder")
    folder = check_folder(root / split, f"the class folders of {split}")
    names = folder_class_names(root)
    parse = partial(class_file_entry, texts=folder_texts(root))
    return collect(folder, root, in_class_folders(folder, names, report, may_lack=True), parse, report)


def read_csv(file: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of a table: a CSV file with the columns path, label, split and, where there are texts, text.

    Paths are relative to the file's folder; labels are names, of which those of the split train are the classes.

    Raises:
        UserError: as `read_ser`, with `report` as there; lines count from 1, the header's own.
    """
    file = Path(file)
    rows = list(table_rows(file, report))
    names = table_classes(file, rows)
    chosen = ((number, row) for number, row in rows if row["split"] == split)
    return collect(file, file.parent, chosen, partial(_table_entry, names=names), report)


def table_class_names(file: Path) -> tuple[str, ...]:
    """The labels of a table's split train, sorted."""
    return table_classes(file, table_rows(file, ignore))


def folder_class_names(root: Path) -> tuple[str, ...]:
    """The names of the folders of train, sorted.

    Raises:
        UserError: no train, no folder in it, or names that cannot be printed or differ in case alone.
    """
    folder = check_folder(root / "train", "the class folders of train")
    names = tuple(names_in(folder, folders=True))
    if not names:
        raise mistake(folder, "a folder for each class", "no folder", GIVE_ROOT)
    for name in names:
        if not name.isprintable():
            raise mistake(folder, "class folders of printable names", typed(name), "rename the folder")
    if len({name.casefold() for name in names}) < len(names):
        raise mistake(folder, "class folders that differ in more than case", typed(names), "put them together")
    return names


def folder_texts(root: Path) -> dict[str, str]:
    """The texts of class folders by path, none where there is no file of them."""
    source = root / FOLDER_TEXTS
    if not os.path.lexists(source):
        return {}
    texts = check_type(read_json(source), dict, source, "the file")
    return {path: check_type(text, str, source, f"entry {listed([path])}") for path, text in texts.items()}


def _table_entry(source: Path, number: int, row: dict[str, str], *, names: tuple[str, ...]) -> Entry:
    """A line of a table."""
    where = f"line {number}"
    if row["label"] not in names:
        raise entry_mistake(
            source, where, f"a label that train has: {listed(names)}", typed(row["label"]), UnknownLabel
        )
    return Entry(where, (row["path"],), names.index(row["label"]), row.get("text") or "")
