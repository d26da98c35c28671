"""A user's own data set as one table: a CSV file with a line for each image."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from readers.files import Report, entry_mistake, read_text
from utils import listed, mistake, typed

COLUMNS = ("path", "label", "split")  # and, where there are texts, text

TABLE_SPLITS = ("train", "val", "test")


def table_rows(file: Path, report: Report) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file that have what they must, with the numbers of their lines, the header's being 1.

    Raises:
        UserError: a file that is missing or no table; a wrong row goes to `report`.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), restkey="more", restval="")
    try:
        columns = reader.fieldnames or []
        lacking = sorted(set(COLUMNS).difference(columns))
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if lacking or twice:
            found = f"none of the name {listed(lacking)}" if lacking else f"several of the name {listed(twice)}"
            raise mistake(file, f"a table with the columns {', '.join(COLUMNS)}", found, "name the columns in line 1")
        for row in reader:
            where = f"line {reader.line_num}"
            if "more" in row or not all(row[name] for name in COLUMNS):
                report(entry_mistake(file, where, "a path, a label and a split", typed(list(row.values()))))
            elif row["split"] not in TABLE_SPLITS:
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
