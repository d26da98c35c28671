"""The annotations of SER30K, FI and EmotionROI: a split's images, labels and texts."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from readers.files import (
    Report,
    UnknownLabel,
    check_type,
    entry_mistake,
    field,
    label_field,
    place,
    read_json,
    read_text,
    stop,
)
from utils import UserError, listed, mistake, printable, reason, typed

SER_NAMES = ("surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral")
FI_NAMES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
EMOTION_ROI_NAMES = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


EMPTY: Mapping[str, str] = MappingProxyType({})
GIVE_ROOT = "complete the data set, or give its folder with --data-path"


class Sample(NamedTuple):
    """An image with its label, counted from 0, and its text, '' where it has none."""

    path: Path
    label: int
    text: str


class Entry(NamedTuple):
    """What a list says of an image: what to call the entry, the parts of its path below the root, label and text."""

    where: str
    parts: tuple[str, ...]
    label: int
    text: str = ""


def read_ser(root: str | Path, split: str, report: Report = stop, annotations: str = "") -> list[Sample]:
    """Reads a split of SER30K: `train`, `val` or `test`.

    Args:
        root: the folder `SER_Dataset`, or the folder that it stands in. The lists of `Annotations/image-level` come
            before those of `Annotations`; the two are never mixed, as their splits may overlap. `Images` may be a
            link to another disk; nothing below it may lead out of it.
        report: is called with each mistake in an entry; where it returns, the others are read on. Entries whose
            images are missing (MissingImages) are then among the samples, other wrong ones are not.
        annotations: the folder in `Annotations` with the lists, as tools/make_splits.py writes them; '' for SER30K's.

    Raises:
        UserError: a folder, file or image is missing, or an entry is not as it should be; entries count from 0.
    """
    root = ser_folder(Path(root))
    source = ser_lists(root, annotations) / f"{split}.json"
    return collect(source, root / "Images", enumerate(ser_entries(source)), ser_entry, report)


def read_fi(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of FI, `train` or `test`: from the list `<split>.json` if there is one, else from class folders.

    In a class folder every file is an image, hidden ones excepted; upper and lower case of its name do not matter.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    root = check_folder(Path(root), "FI's folder")
    source = root / f"{split}.json"
    if os.path.lexists(source):
        parse = partial(_pair, names=FI_NAMES, path_at=0, below=split)
        return collect(source, root, _listed(source), parse, report)
    folder = check_folder(root / split, f"the class folders of {split}, or the list {source.name} beside it")
    return collect(folder, root, in_class_folders(folder, FI_NAMES, report), class_file_entry, report)


def read_emotion_roi(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of EmotionROI, `train` or `test`: from the list `<split>.json` if there is one, else from the
    official split `training_testing_split/{training,testing}.txt`, whose lines count from 1.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    root = check_folder(Path(root), "EmotionROI's folder")
    source = root / f"{split}.json"
    if os.path.lexists(source):
        parse = partial(_pair, names=EMOTION_ROI_NAMES, path_at=1, below="")
        return collect(source, root, _listed(source), parse, report)
    source = root / "training_testing_split" / f"{split}ing.txt"
    return collect(source, root, _lines(source), _line_entry, report)


def collect(
    source: Path, root: Path, rows: Iterable[tuple], parse: Callable[..., Entry], report: Report
) -> list[Sample]:
    """The samples of a list, which must have a row: each row's entry, as `parse` reads it, with its image found."""
    entries, count = [], 0
    for row in rows:
        count += 1
        try:
            entries.append(parse(source, *row))
        except UserError as error:
            report(error)
    if not count:
        raise mistake(source, "at least one image", "an empty split", "complete the data set")
    paths = place(source, root, [(entry.where, entry.parts) for entry in entries], report)
    pairs = zip(paths, entries, strict=True)
    return [Sample(path, entry.label, entry.text) for path, entry in pairs if path is not None]


def ser_folder(root: Path) -> Path:
    """The folder with `Annotations`: the one given or `SER_Dataset` in it."""
    for folder in (root, root / "SER_Dataset"):
        if os.path.isdir(folder / "Annotations"):
            return folder
    found = "a folder without it" if os.path.isdir(root) else "no such folder"
    raise mistake(root, "SER_Dataset with its folder Annotations", found, GIVE_ROOT)


def ser_lists(root: Path, annotations: str = "") -> Path:
    """The folder with the lists of the splits; see `read_ser`. Raises UserError if one that is named is not there."""
    folder = root / "Annotations" / (annotations or "image-level")
    if annotations:
        if Path(annotations).anchor or ".." in Path(annotations).parts or not annotations.isprintable():
            raise UserError(f"--annotations {printable(annotations)}: expected a folder in {folder.parent}: name it")
        if not os.path.isfile(folder / "train.json"):
            found = "no such list" if os.path.isdir(folder) else "no such folder"
            remedy = "make it with tools/make_splits.py, or name another (of several folds, NAME/fold0)"
            expected = f"expected lists {printable(folder)}/{{train,val,test}}.json"
            raise UserError(f"--annotations {annotations}: {expected}, found {found}: {remedy}")
        return folder
    has_lists = any(os.path.lexists(folder / f"{split}.json") for split in ("train", "val", "test"))
    return folder if has_lists else folder.parent


def ser_entries(source: Path) -> list[Any]:
    """The entries of a list of SER30K, unchecked; raises UserError for another kind of file."""
    content = check_type(read_json(source), dict, source, "the file")
    return field(content, "annotations", list, source, "the file")


def ser_entry(source: Path, number: int, entry: Any) -> Entry:
    """An entry of a list of SER30K, whose labels count from 1."""
    where = f"entry {number}"
    check_type(entry, dict, source, where)
    topic, file_name, text = (field(entry, key, str, source, where) for key in ("topic", "file_name", "text"))
    for key in ("topic", "file_name"):
        if not entry[key]:
            raise entry_mistake(source, f"{where}, field {key!r}", "a name", "an empty text")
    label = label_field(entry, "anno", range(1, len(SER_NAMES) + 1), source, where) - 1
    return Entry(where, (topic, file_name), label, text)


def _listed(source: Path) -> Iterable[tuple[int, Any]]:
    """The numbered values of a JSON list."""
    return enumerate(check_type(read_json(source), list, source, "the file"))


def _pair(source: Path, number: int, pair: Any, *, names: tuple[str, ...], path_at: int, below: str) -> Entry:
    """An entry that is a path below `below`, at `path_at`, and a class id, counted from 0."""
    where = f"entry {number}"
    if len(check_type(pair, list, source, where)) != 2:
        raise entry_mistake(source, where, "a path and a class id", f"{len(pair)} values")
    path = field(pair, path_at, str, source, where)
    label = label_field(pair, 1 - path_at, range(len(names)), source, where)
    return Entry(where, (below, path), label)


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file, empty ones left out."""
    for number, line in enumerate(read_text(source).split("\n"), start=1):
        if line := line.strip():
            yield number, line


def _line_entry(source: Path, number: int, line: str) -> Entry:
    """A line of EmotionROI's official split: a path below `images/`, whose first folder is the class."""
    name, slash, _ = line.partition("/")
    if not slash or name.casefold() not in EMOTION_ROI_NAMES:
        expected = f"a path that starts with one of the folders {', '.join(EMOTION_ROI_NAMES)}"
        raise entry_mistake(source, f"line {number}", expected, typed(line), UnknownLabel)
    return Entry(f"line {number}", ("images", line), EMOTION_ROI_NAMES.index(name.casefold()))


def in_class_folders(
    folder: Path, names: tuple[str, ...], report: Report, *, may_lack: bool = False
) -> Iterator[tuple[str, str, int]]:
    """Folder, name and label of the files of a split in folders named as their classes, in the order of their names.

    Args:
        may_lack: whether a class may have no folder.
    """
    labels = {name.casefold(): label for label, name in enumerate(names)}
    found = {name: names_in(folder / name) for name in names_in(folder, folders=True)}
    strange = [name for name in found if name.casefold() not in labels]
    lacking = sorted(set(labels).difference(name.casefold() for name in found))
    expected, remedy = f"the class folders {listed(names)}", "complete or rename the folders"
    for name in strange:
        report(UnknownLabel(str(mistake(folder, expected, f"{printable(name)} as well", remedy))))
    if lacking and not may_lack:
        report(mistake(folder, expected, f"no {listed(lacking)}", remedy))
    for name, files in found.items():
        if name not in strange:
            yield from ((name, file, labels[name.casefold()]) for file in files)


def class_file_entry(folder: Path, name: str, file: str, label: int, texts: Mapping[str, str] = EMPTY) -> Entry:
    """The entry for a file in a class folder."""
    text = texts.get(f"{folder.name}/{name}/{file}", "")
    return Entry(f"class folder {name}", (folder.name, name, file), label, text)


def names_in(folder: Path, *, folders: bool = False) -> list[str]:
    """The names of the files, or else the folders, in a folder, sorted, without hidden ones; raises UserError."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir() == folders]
    except OSError as error:
        raise mistake(folder, "class folders that can be read", reason(error), GIVE_ROOT) from error
    return sorted(name for name in found if not name.startswith("."))


def check_folder(folder: Path, expected: str) -> Path:
    """The folder, if it is there."""
    if not os.path.isdir(folder):
        raise mistake(folder, expected, "no such folder", GIVE_ROOT)
    return folder
