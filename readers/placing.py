"""The files that a list names: where they are below the data set's folder, or why they are not found."""

import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple

from readers.files import Report
from utils import UserError, mistake, printable, typed

MAX_NAME_BYTES = 4096
NAME_REMEDY = "name a file in the data set's folder"


class Missing(NamedTuple):
    """An image that is not there: what to call its entry, the path, and why it is not found, '' if nothing says so."""

    where: str
    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.where}, {printable(self.path)}" + (f" ({self.why})" if self.why else "")


class MissingImages(UserError):
    """Entries whose images are not there, each with its Missing in `images`."""

    def __init__(self, message: str, images: Sequence[Missing] = ()):
        super().__init__(message)
        self.images = list(images)


def missing_images(source: Path, images: Sequence[Missing], entries: int) -> MissingImages:
    """The error for images that are not there, of a list of so many entries."""
    found = f"{len(images):,} missing, the first of them {images[0]}"
    expected = f"an image file for each of {entries:,} entries"
    return MissingImages(str(mistake(source, expected, found, "complete the data set or correct the paths")), images)


def place(source: Path, root: Path, names: Sequence[tuple[str, tuple[str, ...]]], report: Report) -> list[Path | None]:
    """The files of the entries of a list, each folder looked through once; None for an entry that was reported.

    Links are followed wherever they lead. A path that is not there as written is also taken with backslashes for
    slashes, in another Unicode form (NFC, NFD) or without white space around its names, if that file exists.

    Args:
        source: the list, for messages.
        root: the data set's folder.
        names: for each entry what to call it, and the parts of its path below `root`.
        report: is told of each path that leaves `root` by its name, and once of the images that are not there
            (MissingImages); if it returns, these have their paths nevertheless.
    """
    folders = Folders()
    paths: list[Path | None] = []
    missing = []
    for where, parts in names:
        path: Path | None = None
        try:
            path, is_there = locate(folders, root, parts, source, where)
            if not is_there:
                missing.append(Missing(where, path, folders.why_missing(root, path)))
        except UserError as error:
            report(error)
        paths.append(path)
    if missing:
        report(missing_images(source, missing, len(names)))
    return paths


def locate(folders: "Folders", root: Path, parts: tuple[str, ...], source: Path, where: str) -> tuple[Path, bool]:
    """The path of an entry's file and whether it is there; raises UserError for one that leaves the folder by name."""
    for part in parts:
        _check_name(part, source, where)
    path = root.joinpath(*parts)
    if folders.has(path):
        return path, True
    if any("\\" in part for part in parts):
        ways = [_slashed(part) for part in parts]
        if any(way.anchor or ".." in way.parts for way in ways):
            raise _outside(source, where, str(PurePath(*parts)))
        path = root.joinpath(*(name for way in ways for name in way.parts))
    other = folders.find(root, path.relative_to(root).parts)
    return (path, False) if other is None else (other, True)


def nearest(folders: "Folders", folder: Path, name: str) -> Path:
    """The file of a name relative to a folder, as written or else in the forms that `place` takes."""
    path = folder / name
    slashed = folder.joinpath(*_slashed(name).parts)
    if os.path.exists(path) or os.path.isfile(slashed):
        return path if os.path.exists(path) else slashed
    return folders.find(folder, _slashed(name).parts) or path


class Folders:
    """The files in folders, each folder listed when it is first asked for."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, bool]] = {}
        self._forms: dict[tuple[Path, Callable[[str], str]], dict[str, str]] = {}

    def has(self, path: Path) -> bool:
        """Whether a path is that of a regular file."""
        return self._list(path.parent).get(path.name, False)

    def find(self, root: Path, names: Sequence[str]) -> Path | None:
        """A file whose path below a root is these names, or the same in another form; None if there is none."""
        path = root
        for name in names:
            other = name if name in self._list(path) else self._alike(path, name, plain_name)
            if other is None:
                return None
            path /= other
        return path if self.has(path) else None

    def why_missing(self, root: Path, path: Path) -> str:
        """Why there is no file at a path below a root, if what is there instead says so."""
        folder = root
        for name in path.relative_to(root).parts:
            if name not in self._list(folder):
                if other := self._alike(folder, name, _without_case):
                    return f"there is {printable(other)}, in another case"
                if folder / name != path:
                    return f"there is no folder {printable(folder / name)}"
                other = self._alike(folder, name, _without_suffix)
                return f"there is {printable(other)}, with another suffix" if other else ""
            folder /= name
        if os.path.islink(path) and not os.path.exists(path):
            return "a link to a file that is not there"
        return "a folder" if os.path.isdir(path) else "no regular file"

    def _alike(self, folder: Path, name: str, form: Callable[[str], str]) -> str | None:
        """What stands in a folder under a name of the same form, if anything does."""
        if (folder, form) not in self._forms:
            self._forms[folder, form] = {form(one): one for one in sorted(self._list(folder), reverse=True)}
        return self._forms[folder, form].get(form(name))

    def _list(self, folder: Path) -> dict[str, bool]:
        """What stands in a folder, and whether it is a regular file."""
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    self._listings[folder] = {entry.name: is_file(entry) for entry in entries}
            except (OSError, ValueError):
                self._listings[folder] = {}
        return self._listings[folder]


def is_file(entry: os.DirEntry) -> bool:
    """Whether an entry of a folder is a regular file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # such as a link to itself
        return False


def plain_name(name: str) -> str:
    """A name in one Unicode form, without white space around it."""
    return unicodedata.normalize("NFC", name).strip()


def _slashed(name: str) -> PurePath:
    """A name as a path, with backslashes for slashes if there are any."""
    return PureWindowsPath(name) if "\\" in name else PurePath(name)


def _without_case(name: str) -> str:
    return plain_name(name).casefold()


def _without_suffix(name: str) -> str:
    return PurePath(name).stem


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
        raise _outside(source, where, name)


def _outside(source: Path, where: str, name: str) -> UserError:
    """The error for an entry whose path leaves the data set's folder."""
    expected = f"{where} to name a file in the data set's folder"
    return mistake(source, expected, f"a path out of it, {typed(name)}", "move the file there or take the entry out")
