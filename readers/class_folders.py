"""Images in class folders: which folders and files are data, and what systems and archives leave beside them."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from readers.files import LeftOut, Report, UnknownLabel
from utils import is_printable, listed, mistake, printable, reason, shown, typed

GIVE_ROOT = "complete the data set, or give its folder with --data-path"
# What archives, Windows, Synology, QNAP and Linux put beside data; hidden names are left out as well.
SYSTEM_FOLDERS = frozenset(
    "__macosx @eadir @tmp @recycle @recently-snapshot .@__thumb #recycle #snapshot $recycle.bin lost+found "
    "__pycache__".split()
) | {"system volume information"}
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"})
SYSTEM_SUFFIXES = ("@synoeastream", "@synoresource")


class Content(NamedTuple):
    """The names in a folder, sorted: folders, files, and what systems put there."""

    folders: list[str]
    files: list[str]
    of_systems: list[str]


def content_of(folder: Path) -> Content:
    """What is in a folder; a link counts as what it leads to. Raises UserError if the folder cannot be read."""
    content = Content([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_of_system(entry.name):
                    content.of_systems.append(entry.name)
                else:
                    (content.folders if _is_folder(entry) else content.files).append(entry.name)
    except OSError as error:
        raise mistake(folder, "a folder of images that can be read", reason(error), GIVE_ROOT) from error
    return Content(*map(sorted, content))


def files_below(folder: Path, of_systems: list[str]) -> Iterator[tuple[str, ...]]:
    """The paths below a folder of the files in it and in deeper folders, as parts, in order.

    Links are followed, as torchvision's ImageFolder does.

    Args:
        of_systems: gets the paths of what systems put there, which is left out.

    Raises:
        UserError: a folder cannot be read, or a link leads back to a folder above it.
    """
    waiting: list[tuple[tuple[str, ...], tuple[str, ...]]] = [((), (os.path.realpath(folder),))]
    while waiting:
        parts, real_parents = waiting.pop()
        content = content_of(folder.joinpath(*parts))
        of_systems += ["/".join((*parts, name)) for name in content.of_systems]
        yield from ((*parts, name) for name in content.files)
        for name in reversed(content.folders):
            path = folder.joinpath(*parts, name)
            real = os.path.realpath(path)
            if any(Path(one).is_relative_to(real) for one in real_parents):
                found = f"a link back to {printable(real)}"
                raise mistake(path, "links that lead to no folder above them", found, "remove the link")
            waiting.append(((*parts, name), (*real_parents, real)))


def in_class_folders(
    folder: Path, names: tuple[str, ...], report: Report, *, may_lack: bool = False
) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Class folder, path below it and label of the files of a split in folders named as their classes, in order.

    Args:
        may_lack: whether a class may have no folder, and an empty folder is no class.
    """
    labels = {alike(name): label for label, name in enumerate(names)}
    content = content_of(folder)
    left_out = list(content.of_systems)
    strange = [name for name in content.folders if alike(name) not in labels]
    lacking = sorted(set(labels).difference(map(alike, content.folders)))
    expected, remedy = f"the class folders {listed(names)}", "complete or rename the folders"
    for name in strange:
        if may_lack and is_empty(folder / name):
            left_out.append(f"{name} (empty)")
        else:
            report(UnknownLabel(str(mistake(folder, expected, f"{printable(name)} as well", remedy))))
    if lacking and not may_lack:
        report(mistake(folder, expected, f"no {listed(lacking)}", remedy))
    for name in content.folders:
        if name not in strange:
            of_systems: list[str] = []
            yield from ((name, file, labels[alike(name)]) for file in files_below(folder / name, of_systems))
            left_out += [f"{name}/{path}" for path in of_systems]
    report_left_out(folder, content.files, left_out, report)


def report_left_out(folder: Path, files: list[str], left_out: list[str], report: Report) -> None:
    """Reports the files beside class folders, and what is empty or of systems."""
    if files:
        said = f"left out {len(files):,} files that are in no class folder: {listed(files)}"
        report(LeftOut(f"{printable(folder)}: {said}: move them into the folders of their classes"))
    if left_out:
        said = "left out what is empty, hidden, or of a system or archive"
        report(LeftOut(f"{printable(folder)}: {said}: {listed(left_out)}"))


def class_folder_names(folder: Path) -> tuple[str, ...]:
    """The names of the class folders in a folder, sorted: those that hold a file.

    Raises:
        UserError: there is none, or names cannot be printed or differ in case, white space or Unicode form alone.
    """
    content = content_of(folder)
    names = tuple(name for name in content.folders if not is_empty(folder / name))
    if not names:
        others = [*content.folders, *content.files]
        found = f"{listed(others)}, which is none" if others else "no folder"
        raise mistake(folder, "a folder for each class, with images", found, GIVE_ROOT)
    for name in names:
        if not is_printable(name):
            raise mistake(folder, "class folders of printable names", typed(name), "rename the folder")
    check_distinct(folder, "class folders", names, "put them together")
    return names


def check_distinct(source: Path, what: str, names: tuple[str, ...], remedy: str) -> None:
    """Raises UserError for names of classes that only look different."""
    forms: dict[str, str] = {}
    for name in names:
        other = forms.setdefault(alike(name), name)
        if other != name:
            expected = f"{what} that differ in more than case or white space"
            raise mistake(source, expected, f"{shown(other)} and {shown(name)}", remedy)


def is_empty(folder: Path) -> bool:
    """Whether there is no file in a folder and in those below it; raises UserError as `files_below`."""
    return next(files_below(folder, []), None) is None


def plain_label(label: str) -> str:
    """A label in one Unicode form, without white space that means nothing; a whole number without its decimals."""
    label = " ".join(unicodedata.normalize("NFC", label).split())
    return re.sub(r"^(-?[0-9]+)\.0+$", r"\1", label)


def alike(name: str) -> str:
    """What names have in common that differ in form alone: case, white space, Unicode form, or as 1 and 1.0 do."""
    return plain_label(name).casefold()


def check_folder(folder: Path, expected: str) -> Path:
    """The folder, if it is there."""
    if not os.path.isdir(folder):
        raise mistake(folder, expected, "no such folder", GIVE_ROOT)
    return folder


def _is_of_system(name: str) -> bool:
    """Whether a name is hidden, or one that systems and archives make."""
    folded = name.casefold()
    known = folded in SYSTEM_FOLDERS or folded in SYSTEM_FILES or folded.endswith(SYSTEM_SUFFIXES)
    return name.startswith(".") or known


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False
