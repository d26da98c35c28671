"""The annotations of SER30K, FI, EmotionROI, class folders and tables: a split's images, labels and texts."""

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
    ignore,
    label_field,
    place,
    read_json,
    read_text,
    stop,
)
from readers.own_data import TABLE_SPLITS, table_classes, table_rows
from utils import UserError, listed, mistake, printable, reason, typed

SER_NAMES = ("surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral")

FI_NAMES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")

EMOTION_ROI_NAMES = ("anger", "disgust", "fear", "joy", "sadness", "surprise")

CLASS_NAMES = {"SER": SER_NAMES, "SER_V": SER_NAMES, "FI": FI_NAMES, "EmotionROI": EMOTION_ROI_NAMES}

SPLITS = {
    "SER": ("train", "val", "test"),
    "SER_V": ("train", "val", "test"),
    "FI": ("train", "test"),
    "EmotionROI": ("train", "test"),
    "folder": ("train", "val", "test"),
    "csv": TABLE_SPLITS,
}

WITH_TEXTS = ("SER", "folder", "csv")  # data sets that may have texts

FOLDER_TEXTS = "texts.json"  # of class folders: path below the data set's folder to text

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


def read_ser(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of SER30K: `train`, `val` or `test`.

    Args:
        root: the folder `SER_Dataset`, or the folder that it stands in. The lists of `Annotations/image-level` come
            before those of `Annotations`; the two are never mixed, as their splits may overlap. `Images` may be a
            link to another disk; nothing below it may lead out of it.
        report: is called with each mistake in an entry; where it returns, the others are read on. Entries whose
            images are missing (MissingImages) are then among the samples, other wrong ones are not.

    Raises:
        UserError: a folder, file or image is missing, or an entry is not as it should be; entries count from 0.
    """
    _check_split("SER30K", split, SPLITS["SER"])
    root = _ser_folder(Path(root))
    source = _ser_lists(root) / f"{split}.json"
    content = check_type(read_json(source), dict, source, "the file")
    entries = field(content, "annotations", list, source, "the file")
    return _samples(source, root / "Images", enumerate(entries), _ser_entry, report)


def read_fi(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of FI, `train` or `test`: from the list `<split>.json` if there is one, else from class folders.

    In a class folder every file is an image, hidden ones excepted; upper and lower case of its name do not matter.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    _check_split("FI", split, SPLITS["FI"])
    root = _check_folder(Path(root), "FI's folder")
    source = root / f"{split}.json"
    if os.path.lexists(source):
        parse = partial(_pair, names=FI_NAMES, path_at=0, below=split)
        return _samples(source, root, _listed(source), parse, report)
    folder = _check_folder(root / split, f"the class folders of {split}, or the list {source.name} beside it")
    return _samples(folder, root, _in_class_folders(folder, FI_NAMES, report), _class_file, report)


def read_emotion_roi(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of EmotionROI, `train` or `test`: from the list `<split>.json` if there is one, else from the
    official split `training_testing_split/{training,testing}.txt`, whose lines count from 1.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    _check_split("EmotionROI", split, SPLITS["EmotionROI"])
    root = _check_folder(Path(root), "EmotionROI's folder")
    source = root / f"{split}.json"
    if os.path.lexists(source):
        parse = partial(_pair, names=EMOTION_ROI_NAMES, path_at=1, below="")
        return _samples(source, root, _listed(source), parse, report)
    source = root / "training_testing_split" / f"{split}ing.txt"
    return _samples(source, root, _lines(source), _line_entry, report)


def read_folder(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split, `train`, `val` or `test`, of images in class folders: `<root>/<split>/<class>/<image>`.

    The folders of train are the classes (`class_names`). The other splits may lack some of them; every file in them is
    an image, hidden ones excepted. Texts are in `<root>/texts.json`, where there is one: an object from an image's
    path, as in train/happy/1.png, to its text.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    _check_split("folder", split, SPLITS["folder"])
    root = _check_folder(Path(root), "the data set's folder")
    folder = _check_folder(root / split, f"the class folders of {split}")
    names = class_names("folder", root)
    parse = partial(_class_file, texts=_folder_texts(root))
    return _samples(folder, root, _in_class_folders(folder, names, report, may_lack=True), parse, report)


def read_csv(file: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of a table: a CSV file with the columns path, label, split and, where there are texts, text.

    Paths are relative to the file's folder; labels are names, of which those of the split train are the classes.

    Raises:
        UserError: as `read_ser`, with `report` as there; lines count from 1, the header's own.
    """
    _check_split("csv", split, SPLITS["csv"])
    file = Path(file)
    rows = list(table_rows(file, report))
    names = table_classes(file, rows)
    chosen = ((number, row) for number, row in rows if row["split"] == split)
    return _samples(file, images_root("csv", file), chosen, partial(_table_entry, names=names), report)


def class_names(dataset: str, root: str | Path) -> tuple[str, ...]:
    """The names of a data set's labels, in their order; those of `folder` and `csv` are what train has, sorted.

    Raises:
        UserError: `folder` without train, without a folder in it, or with names that cannot be printed or differ in
            case alone.
    """
    if dataset == "csv":
        return table_classes(Path(root), table_rows(Path(root), ignore))
    if dataset != "folder":
        return CLASS_NAMES[dataset]
    folder = _check_folder(Path(root) / "train", "the class folders of train")
    names = tuple(_listing(folder, folders=True))
    if not names:
        raise mistake(folder, "a folder for each class", "no folder", GIVE_ROOT)
    for name in names:
        if not name.isprintable():
            raise mistake(folder, "class folders of printable names", typed(name), "rename the folder")
    if len({name.casefold() for name in names}) < len(names):
        raise mistake(folder, "class folders that differ in more than case", typed(names), "put them together")
    return names


def images_root(dataset: str, root: str | Path) -> Path:
    """The folder below which a data set's images lie, and from which predictions name them: a table's is its own."""
    return Path(root).parent if dataset == "csv" else Path(root)


def _samples(
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


def _ser_folder(root: Path) -> Path:
    """The folder with `Annotations`: the one given or `SER_Dataset` in it."""
    for folder in (root, root / "SER_Dataset"):
        if os.path.isdir(folder / "Annotations"):
            return folder
    found = "a folder without it" if os.path.isdir(root) else "no such folder"
    raise mistake(root, "SER_Dataset with its folder Annotations", found, GIVE_ROOT)


def _ser_lists(root: Path) -> Path:
    """The folder with the lists of the splits."""
    folder = root / "Annotations" / "image-level"
    has_lists = any(os.path.lexists(folder / f"{split}.json") for split in ("train", "val", "test"))
    return folder if has_lists else folder.parent


def _ser_entry(source: Path, number: int, entry: Any) -> Entry:
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


def _in_class_folders(
    folder: Path, names: tuple[str, ...], report: Report, *, may_lack: bool = False
) -> Iterator[tuple[str, str, int]]:
    """Folder, name and label of the files of a split in folders named as their classes, in the order of their names.

    Args:
        may_lack: whether a class may have no folder.
    """
    labels = {name.casefold(): label for label, name in enumerate(names)}
    found = {name: _listing(folder / name) for name in _listing(folder, folders=True)}
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


def _class_file(folder: Path, name: str, file: str, label: int, texts: Mapping[str, str] = EMPTY) -> Entry:
    """The entry for a file in a class folder."""
    text = texts.get(f"{folder.name}/{name}/{file}", "")
    return Entry(f"class folder {name}", (folder.name, name, file), label, text)


def _folder_texts(root: Path) -> dict[str, str]:
    """The texts of class folders by path, none where there is no file of them."""
    source = root / FOLDER_TEXTS
    if not os.path.lexists(source):
        return {}
    texts = check_type(read_json(source), dict, source, "the file")
    return {path: check_type(text, str, source, f"entry {listed([path])}") for path, text in texts.items()}


def _table_entry(source: Path, number: int, row: dict[str, str], *, names: tuple[str, ...]) -> Entry:
    """A line of a table."""
    where = f"line {number}"
    if row["label"] not in names:
        raise entry_mistake(
            source, where, f"a label that train has: {listed(names)}", typed(row["label"]), UnknownLabel
        )
    return Entry(where, (row["path"],), names.index(row["label"]), row.get("text") or "")


def _listing(folder: Path, *, folders: bool = False) -> list[str]:
    """The names of the files, or else the folders, in a folder, sorted, without hidden ones; raises UserError."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir() == folders]
    except OSError as error:
        raise mistake(folder, "class folders that can be read", reason(error), GIVE_ROOT) from error
    return sorted(name for name in found if not name.startswith("."))


def _check_split(dataset: str, split: str, splits: tuple[str, ...]) -> None:
    """Raises UserError for a split that the data set has not."""
    if split not in splits:
        lacks = f"expected one of {dataset}'s splits {', '.join(splits)}, found {split!r}"
        raise UserError(f"{lacks}: {dataset} has no such split, choose another")


def _check_folder(folder: Path, expected: str) -> Path:
    """The folder, if it is there."""
    if not os.path.isdir(folder):
        raise mistake(folder, expected, "no such folder", GIVE_ROOT)
    return folder
