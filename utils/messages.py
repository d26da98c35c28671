"""Values from files that strangers made, as one short line for a message."""

import reprlib
from typing import Any

MAX_LENGTH = 300

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 60
_shortened.maxlist = _shortened.maxtuple = 8
_shortened.maxlevel = 3


def printable(value: Any, limit: int = MAX_LENGTH) -> str:
    """A name as it is, quoted and escaped where it would not stay on one line, cut at `limit` characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text[:limit])
    return text if len(text) <= limit else text[:limit] + "..."


def shown(value: Any) -> str:
    """A value as Python writes it, shortened."""
    try:
        return printable(" ".join(_shortened.repr(value).split()))
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__} of too many digits"
