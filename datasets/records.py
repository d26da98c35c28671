"""Lists that strangers wrote: text, JSON, and the fields of entries, checked as they are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from datasets.files import mistake, printable, read_bytes, shown
from errors import UserError

MAX_LIST_BYTES = 2**28
KIND_NAMES = {str: "a text", int: "an integer", list: "a list", dict: "an object"}

Report = Callable[[UserError], None]


class UnknownLabel(UserError):
    """An entry whose label is none of the data set's."""


def stop(error: UserError) -> NoReturn:
    """The usual report of a mistake: it ends the reading."""
    raise error


def ignore(error: UserError) -> None:
    """The report of a look that is not to end at a mistake, which another look reports."""


def read_text(source: Path) -> str:
    """A list as text; raises UserError where it is missing, too large or not UTF-8."""
    content = read_bytes(source, "the list of a split", "complete the data set or mend the file", MAX_LIST_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {content[error.start]:#04x} at {error.start}"
        raise mistake(source, "UTF-8", found, "store the file as UTF-8") from error


def read_json(source: Path) -> Any:
    """The content of a JSON file; raises UserError."""
    text = read_text(source)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at line {error.lineno}, column {error.colno}"
    except RecursionError:
        found = "lists or objects nested too deeply"
    except ValueError as error:  # an integer of more digits than Python converts
        found = str(error)
    raise mistake(source, "JSON", found, "mend the file or fetch it again")


def check_type(value: Any, kind: type, source: Path, where: str) -> Any:
    """The value, if it is of the type; a boolean is no integer. Raises UserError."""
    if type(value) is not kind:
        raise entry_mistake(source, where, KIND_NAMES[kind], shown(value))
    return value


def field(entry: Any, key: str | int, kind: type, source: Path, where: str) -> Any:
    """A field of an entry, if it is there and of the type. Raises UserError."""
    if isinstance(entry, dict) and key not in entry:
        raise entry_mistake(source, where, f"a field {key!r}", f"only {shown(list(entry))}")
    return check_type(entry[key], kind, source, f"{where}, field {key!r}")


def label_field(entry: Any, key: str | int, labels: range, source: Path, where: str) -> int:
    """The label of an entry, if it is one of `labels`. Raises UserError."""
    label = field(entry, key, int, source, where)
    if label not in labels:
        expected = f"a label from {labels[0]} to {labels[-1]}"
        raise entry_mistake(source, f"{where}, field {key!r}", expected, shown(label), UnknownLabel)
    return label


def entry_mistake(source: Path, where: str, expected: str, found: str, kind: type[UserError] = UserError) -> UserError:
    """The error for an entry that is not as it should be."""
    return kind(f"{printable(source)}: {where}: expected {expected}, found {found}: correct the entry")
