"""Opening files that strangers made, and the one form in which their mistakes are told."""

import os
import reprlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError

MAX_NAME = 60  # characters, in a row of names
MAX_NAMES = 10

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = MAX_NAME


def printable(value: str | Path) -> str:
    """A name as it is, or quoted and escaped where it would not stay on one line."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def shown(value: Any) -> str:
    """A value from a file, shortened to stay readable on one line."""
    return f"{type(value).__name__} {_shortened.repr(value)}"


def listed(names: Sequence[str]) -> str:
    """Names in a row: the first ten, each shortened, and how many there are if there are more."""
    row = ", ".join(printable(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}...") for name in names[:MAX_NAMES])
    return row if len(names) <= MAX_NAMES else f"{row}, ... ({len(names):,})"


def mistake(path: str | Path, expected: str, found: str, remedy: str) -> UserError:
    """The error for a file that is not as it should be."""
    return UserError(f"{printable(path)}: expected {expected}, found {found}: {remedy}")


def reason(error: BaseException) -> str:
    """Why a file could not be opened or read, on one short line."""
    text = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
    return _line(text.strip())[:200]


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


def _line(text: str) -> str:
    """A text on one line, with what cannot be printed replaced."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
