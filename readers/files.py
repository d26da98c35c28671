"""Opening files that strangers made, the fields of their entries, and the files that they name."""

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NoReturn

from utils import UserError, check_shortage, mistake, printable, reason, typed


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


MAX_NAME_BYTES = 4096
NAME_REMEDY = "name a file in the data set's folder"


class MissingImages(UserError):
    """Entries whose images are not there; `images` has for each what to call the entry, and the path."""

    def __init__(self, source: Path, images: Sequence[tuple[str, Path]], entries: int):
        where, path = images[0]
        found = f"{len(images):,} missing, the first of them {where}, {printable(path)}"
        expected = f"an image file for each of {entries:,} entries"
        super().__init__(str(mistake(source, expected, found, "complete the data set")))
        self.images = list(images)


def place(source: Path, root: Path, names: Sequence[tuple[str, tuple[str, ...]]], report: Report) -> list[Path | None]:
    """The files of the entries of a list, each folder looked through once; None for an entry that was reported.

    Args:
        source: the list, for messages.
        root: the data set's folder; it may be a link itself, but nothing in it may lead out of it.
        names: for each entry what to call it, and the parts of its path below `root`.
        report: is told of each path that leaves `root`, and once of the images that are not there (MissingImages);
            where it returns, these have their paths nevertheless.
    """
    folders = _Folders(root)
    paths: list[Path | None] = []
    missing = []
    for where, parts in names:
        path = root.joinpath(*parts)
        try:
            if not _is_there(folders, path, parts, source, where):
                missing.append((where, path))
        except UserError as error:
            report(error)
            path = None
        paths.append(path)
    if missing:
        report(MissingImages(source, missing, len(names)))
    return paths


def _is_there(folders: "_Folders", path: Path, parts: tuple[str, ...], source: Path, where: str) -> bool:
    """Whether an entry's file is there; raises UserError for one that is not in the data set's folder."""
    for part in parts:
        _check_name(part, source, where)
    state = folders.state(path)
    if state == "outside":
        raise _outside(source, where, "a link that leads elsewhere", path)
    return state == "file"


class _Folders:
    """The files in the folders below a root, each folder listed when it is first asked for."""

    def __init__(self, root: Path):
        self.root = os.path.realpath(root)
        self.listings: dict[Path, dict[str, str] | None] = {}

    def state(self, path: Path) -> str:
        """`file`, `missing` (or no regular file), or `outside` where a link leads out of the root."""
        if path.parent not in self.listings:
            self.listings[path.parent] = self._list(path.parent)
        listing = self.listings[path.parent]
        return "outside" if listing is None else listing.get(path.name, "missing")

    def _list(self, folder: Path) -> dict[str, str] | None:
        """The state of each file in a folder, or None where the folder itself lies outside."""
        if not self._holds(folder):
            return None
        try:
            with os.scandir(folder) as entries:
                return {entry.name: self._entry_state(entry) for entry in entries}
        except OSError as error:
            check_shortage(error)
            return {}

    def _entry_state(self, entry: os.DirEntry) -> str:
        """The state of what stands in a folder inside the root."""
        if entry.is_symlink() and not self._holds(entry.path):
            return "outside"
        return "file" if entry.is_file() else "missing"

    def _holds(self, path: str | Path) -> bool:
        """Whether a path, its links followed, is in the root."""
        return Path(os.path.realpath(path)).is_relative_to(self.root)


def _check_name(name: str, source: Path, where: str) -> None:
    """Raises UserError for a name that no file below a folder can have."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > MAX_NAME_BYTES:
        expected = f"a file name of at most {MAX_NAME_BYTES:,} bytes"
        raise mistake(source, f"{where} to have {expected}", typed(name), NAME_REMEDY)
    if PurePath(name).anchor or ".." in PurePath(name).parts:
        raise _outside(source, where, "a path out of it", name)


def _outside(source: Path, where: str, found: str, name: str | Path) -> UserError:
    """The error for an entry whose file is not in the data set's folder."""
    expected = f"{where} to name a file in the data set's folder"
    return mistake(source, expected, f"{found}, {typed(str(name))}", "move the file there or take the entry out")
