"""From names in annotations to files: nothing outside the data set's folder, and every image there."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from datasets.files import mistake, printable, shown
from datasets.records import Report
from errors import UserError

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
        except OSError:
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
        raise mistake(source, f"{where} to have {expected}", shown(name), NAME_REMEDY)
    if PurePath(name).anchor or ".." in PurePath(name).parts:
        raise _outside(source, where, "a path out of it", name)


def _outside(source: Path, where: str, found: str, name: str | Path) -> UserError:
    """The error for an entry whose file is not in the data set's folder."""
    expected = f"{where} to name a file in the data set's folder"
    return mistake(source, expected, f"{found}, {shown(str(name))}", "move the file there or take the entry out")
