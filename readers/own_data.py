"""A user's own data: images in class folders, or a table with a line for each image."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from readers.annotations import Entry, Sample, class_file_entry, collect
from readers.class_folders import (
    check_distinct,
    check_folder,
    class_folder_names,
    content_of,
    in_class_folders,
    plain_label,
)
from readers.files import (
    MergedLabels,
    RepeatedImages,
    Report,
    UnknownLabel,
    UnusedTexts,
    check_type,
    entry_mistake,
    ignore,
    read_json,
    stop,
)
from readers.placing import plain_name
from readers.tables import read_table
from utils import is_printable, listed, mistake, printable, typed

COLUMNS = ("path", "label", "split")  # and, if there are any, text and topic
OWN_SPLITS = ("train", "val", "test")
FOLDER_TEXTS = "texts.json"  # of class folders: path below the data set's folder to text


class Line(NamedTuple):
    """A line of a table: its number, the label as written and as read, split, path and text."""

    number: int
    written: str
    label: str
    split: str
    path: str
    text: str
    topic: str


def table_lines(file: Path, report: Report) -> Iterator[Line]:
    """The lines of a table that have what they must; a wrong one goes to `report`. Raises UserError."""
    for number, row in read_table(file, COLUMNS, report, more=("text", "topic")):
        where = f"line {number}"
        label, split = plain_label(row["label"]), row["split"].strip().casefold()
        if not (row["path"].strip() and label and split):
            report(entry_mistake(file, where, "a path, a label and a split", typed(list(row.values()))))
        elif split not in OWN_SPLITS:
            report(entry_mistake(file, where, "the split train, val or test", typed(row["split"])))
        elif not is_printable(label) or len(row["label"].strip().splitlines()) > 1:  # after a quote without its end
            report(entry_mistake(file, where, "a label of printable characters", typed(row["label"])))
        else:
            yield Line(number, row["label"], label, split, row["path"], row.get("text", ""), row.get("topic", ""))


def table_classes(file: Path, lines: Iterable[Line]) -> tuple[str, ...]:
    """The labels of a table's split train, sorted.

    Raises:
        UserError: there are none, or some differ in case alone.
    """
    names = tuple(sorted({line.label for line in lines if line.split == "train"}))
    if not names:
        raise mistake(file, "lines of the split train", "none", "complete the table")
    check_distinct(file, "labels", names, "write them alike")
    return names


def report_merged(file: Path, lines: Iterable[Line], report: Report) -> None:
    """Reports the labels that are written in several ways and taken as one."""
    ways = defaultdict(set)
    for line in lines:
        ways[line.label].add(line.written)
    merged = [repr(way) for label in sorted(ways) if len(ways[label]) > 1 for way in sorted(ways[label])]
    if merged:
        report(MergedLabels(f"{printable(file)}: labels that differ in form alone are taken as one: {listed(merged)}"))


def report_shared(file: Path, lines: Iterable[Line], report: Report) -> None:
    """Reports the images that a table has in several splits."""
    splits = defaultdict(set)
    for line in lines:
        splits[_plain_path(line.path)].add(line.split)
    shared = [path for path, names in splits.items() if len(names) > 1]
    if shared:
        report(RepeatedImages(f"{printable(file)}: {len(shared):,} images are in several splits: {listed(shared)}"))


def read_folder(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split, `train`, `val` or `test`, of images in class folders: `<root>/<split>/<class>/<image>`.

    The folders of train are the classes (`folder_class_names`). The other splits may lack some of them. Every file in
    them and in deeper folders is an image, except hidden ones and those of systems; links are followed. Texts are in
    `<root>/texts.json`, if there is one: an object from an image's path, as in train/happy/1.png, to its text.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    root = check_folder(Path(root), "the data set's folder")
    folder = check_folder(root / split, f"the class folders of {split}")
    names = folder_class_names(root)
    content = content_of(folder)
    if not content.folders:
        found = f"files in no class folder: {listed(content.files)}" if content.files else "an empty folder"
        raise mistake(folder, f"the class folders of the split {split}", found, "put the images into class folders")
    texts = FolderTexts(root / FOLDER_TEXTS)
    parse = partial(class_file_entry, text_of=texts.of)
    samples = collect(folder, root, in_class_folders(folder, names, report, may_lack=True), parse, report)
    texts.report_unused(split, report)
    return samples


def read_csv(file: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of a table with the columns path, label, split and, if it has them, text and topic (`read_table`).

    Paths are relative to the file's folder; labels are names, of which those of the split train are the classes.

    Raises:
        UserError: as `read_ser`, with `report` as there; lines count from 1, the header's own.
    """
    file = Path(file)
    lines = list(table_lines(file, report))
    names = table_classes(file, lines)
    chosen = [line for line in lines if line.split == split]
    if not chosen:
        counts = Counter(line.split for line in lines)
        found = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        raise mistake(file, f"lines of the split {split}", f"{found} alone", "complete the table")
    if split == "train":  # once, as all splits are in the table
        report_merged(file, lines, report)
        report_shared(file, lines, report)
    return collect(file, file.parent, enumerate(chosen), partial(_table_entry, names=names), report)


def table_class_names(file: Path) -> tuple[str, ...]:
    """The labels of a table's split train, sorted."""
    return table_classes(file, table_lines(file, ignore))


def folder_class_names(root: Path) -> tuple[str, ...]:
    """The names of the folders of train that hold a file, sorted; raises UserError (`class_folder_names`)."""
    return class_folder_names(check_folder(root / "train", "the class folders of train"))


class FolderTexts:
    """The texts of class folders by path, none if there is no file of them; it keeps which were asked for."""

    def __init__(self, source: Path):
        self.source = source
        content = check_type(read_json(source), dict, source, "the file") if os.path.lexists(source) else {}
        self.texts = {path: check_type(text, str, source, f"entry {listed([path])}") for path, text in content.items()}
        self.keys = {_plain_path(path): path for path in self.texts}
        self.used: set[str] = set()

    def of(self, path: str) -> str:
        """The text of a path, whose key may be in another Unicode form or have backslashes."""
        key = path if path in self.texts else self.keys.get(_plain_path(path))
        if key is None:
            return ""
        self.used.add(key)
        return self.texts[key]

    def report_unused(self, split: str, report: Report) -> None:
        """Reports the texts that belong to no image of a split, and with those of train the ones of no split."""
        places = {key: _plain_path(key).partition("/")[0] for key in self.texts}
        places = {key: place if place in OWN_SPLITS else "train" for key, place in places.items()}
        unused = [key for key, place in places.items() if place == split and key not in self.used]
        if unused:
            said = f"{len(unused):,} of {len(self.texts):,} texts belong to no image: {listed(unused)}"
            report(UnusedTexts(f"{printable(self.source)}: {said}: correct the paths, as in {split}/<class>/<image>"))


def _plain_path(path: str) -> str:
    """A path below the data set's folder in one form."""
    return PurePosixPath(plain_name(path.replace("\\", "/"))).as_posix()


def _table_entry(source: Path, number: int, line: Line, *, names: tuple[str, ...]) -> Entry:
    """A line of a table."""
    where = f"line {line.number}"
    if line.label not in names:
        expected = f"a label that train has: {listed(names)}"
        raise entry_mistake(source, where, expected, typed(line.label), UnknownLabel)
    return Entry(where, (line.path,), names.index(line.label), line.text, line.topic)
