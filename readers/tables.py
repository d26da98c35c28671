"""Tables as people and spreadsheets save them: columns by name, with the numbers of the lines."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from readers.files import Report, entry_mistake, read_text
from utils import UserError, listed, mistake, typed

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
Row = dict[str, str]


def read_table(
    file: Path, columns: Sequence[str], report: Report, more: Sequence[str] | None = ()
) -> Iterator[tuple[int, Row]]:
    """The rows of a table with the numbers of their lines, the header's being 1.

    Separators are commas, semicolons, tabs or bars: that with which the header has the columns. Case of the columns'
    names, white space around them, empty lines and columns without a name mean nothing.

    Args:
        columns: the table must have, in any order.
        more: columns that it may have; None for any with a name. A row has the columns of both kinds that are there.
        report: is told of each row with values beyond the last column, which is left out.

    Raises:
        UserError: a file that is missing or no table.
    """
    text = read_text(file)
    if text.startswith("PK\x03\x04"):
        raise mistake(file, "a table as text", "a workbook or an archive", "save the table as CSV")
    named = re.match(r"sep=([,;\t|])\r?\n", text)  # a line for Excel
    separator = named[1] if named else _separator(text, columns)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    header: list[str] | None = None
    line = 0
    try:
        for cells in reader:
            first, line = line + 1, reader.line_num
            if (first == 1 and named) or not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(file, cells, columns, more, separator)
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            last = max(index for index, name in enumerate(header) if name) + 1
            if any(cell.strip() for cell in cells[last:]):
                report(_beyond(file, line, cells, last, separator))
                continue
            row = dict(zip(header, cells + [""] * len(header), strict=False))
            wanted = header if more is None else (*columns, *more)
            yield line, {name: row[name] for name in wanted if name and name in row}
    except csv.Error as error:
        where = f"{error} in the row that begins at line {line + 1}"
        raise mistake(file, "a CSV file", where, "close or double the quotes there") from error
    if header is None:
        raise mistake(
            file, f"a table with the columns {', '.join(columns)}", "an empty file", "name the columns in line 1"
        )


def _separator(text: str, columns: Sequence[str]) -> str:
    """The separator with which the first line that is not empty has the columns, or else the most names."""
    line = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    names = {one: [column_name(name) for name in line.replace('"', "").split(one)] for one in SEPARATORS}
    return max(SEPARATORS, key=lambda one: (len(set(columns).intersection(names[one])), len(names[one])))


def _header(
    file: Path, cells: list[str], columns: Sequence[str], more: Sequence[str] | None, separator: str
) -> list[str]:
    """The names of the columns, '' for those that are not asked for and have none; raises UserError."""
    header = [column_name(cell) for cell in cells]
    lacking = [name for name in columns if name not in header]
    wanted = filter(None, header) if more is None else (*columns, *more)
    twice = [name for name in dict.fromkeys(wanted) if header.count(name) > 1]
    if lacking or twice:
        found = f"none of the name {listed(lacking)}" if lacking else f"several of the name {listed(twice)}"
        found += f" in {listed(header)}, separated by {SEPARATORS.get(separator, typed(separator))}"
        raise mistake(file, f"a table with the columns {', '.join(columns)}", found, "name the columns in line 1")
    return header


def _beyond(file: Path, line: int, cells: list[str], last: int, separator: str) -> UserError:
    """The error for a row with more values than the table has columns."""
    name = SEPARATORS.get(separator, typed(separator))
    expected = f"at most {last} values, with quotes around a text that has {name} in it"
    return entry_mistake(file, f"line {line}", expected, typed(cells))


def column_name(name: str) -> str:
    """The name of a column without what means nothing in it: case and white space around it."""
    return name.strip(" \t\ufeff\xa0").casefold()
