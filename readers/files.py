"""Opening files that strangers made, the fields of their entries, and what a reader reports."""

import codecs
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from utils import UserError, mistake, print0, printable, reason, typed


def open_regular(path: str | Path, expected: str, remedy: str) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        UserError: the file is missing, cannot be read, or is a folder, a pipe or a device, which could wait for ever.
    """
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (handed to the caller)
    except (OSError, ValueError) as error:
        raise mistake(path, expected, reason(error), remedy) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise mistake(path, expected, "a pipe or a device", remedy)
    return file


def read_bytes(path: str | Path, expected: str, remedy: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises UserError."""
    with open_regular(path, expected, remedy) as file:
        try:
            content = file.read(limit + 1)
        except (OSError, MemoryError) as error:
            raise mistake(path, expected, reason(error), remedy) from error
    if len(content) > limit:
        raise mistake(path, f"{expected} of at most {limit:,} bytes", "more", remedy)
    return content


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe without a writer would block an ordinary open."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


MAX_LIST_BYTES = 2**28
BYTE_ORDER_MARKS = (  # UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
KIND_NAMES = {str: "a text", int: "an integer", list: "a list", dict: "an object"}
Report = Callable[[UserError], None]


class UnknownLabel(UserError):
    """An entry whose label is none of the data set's."""


class Remark(UserError):
    """What a reader made of data that may be meant otherwise. It is said and ends nothing."""


class ListUsed(Remark):
    """Which list a split is read from, if there are several places for it."""


class LeftOut(Remark):
    """Files and folders that are no data: of systems and archives, empty, or beside the class folders."""


class MergedLabels(Remark):
    """Labels that are written differently and taken as one."""


class UnusedTexts(Remark):
    """Texts that belong to no image."""


class RepeatedImages(Remark):
    """Images that a split has more than once."""


def stop(error: UserError) -> None:
    """The usual report: a remark is printed, and any other mistake ends the reading."""
    if not isinstance(error, Remark):
        raise error
    print0(error if isinstance(error, ListUsed) else f"warning: {error}")


def ignore(error: UserError) -> None:
    """The report of a look that is not to end at a mistake, which another look reports."""


def read_text(source: Path) -> str:
    """A list as text, in UTF-8, UTF-16 or UTF-32, of which a byte order mark tells.

    Raises:
        UserError: the list is missing, too large or in another encoding.
    """
    content = read_bytes(source, "the list of a split", "complete the data set or mend the file", MAX_LIST_BYTES)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and content[:2].count(b"\0") == 1:  # no list begins with a zero character
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte {content[error.start]:#04x} at {error.start}"
        name = encoding.removesuffix("-sig").upper()
        raise mistake(source, name, found, "store the file as UTF-8") from error


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
    """The value, if it is of the type; a boolean is no integer, and 1.0 is 1. Raises UserError."""
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not kind:
        raise entry_mistake(source, where, KIND_NAMES[kind], typed(value))
    return value


def field(entry: Any, key: str | int, kind: type, source: Path, where: str) -> Any:
    """A field of an entry, if it is there and of the type. Raises UserError."""
    if isinstance(entry, dict) and key not in entry:
        raise entry_mistake(source, where, f"a field {key!r}", f"only {typed(list(entry))}")
    return check_type(entry[key], kind, source, f"{where}, field {key!r}")


def label_field(entry: Any, key: str | int, labels: range, source: Path, where: str) -> int:
    """The label of an entry, if it is one of `labels`. Raises UserError."""
    label = field(entry, key, int, source, where)
    if label not in labels:
        expected = f"a label from {labels[0]} to {labels[-1]}"
        raise entry_mistake(source, f"{where}, field {key!r}", expected, typed(label), UnknownLabel)
    return label


def entry_mistake(source: Path, where: str, expected: str, found: str, kind: type[UserError] = UserError) -> UserError:
    """The error for an entry that is not as it should be."""
    return kind(f"{printable(source)}: {where}: expected {expected}, found {found}: correct the entry")
