"""The annotations of SER30K, FI and EmotionROI: a split's images, labels and texts."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from readers.class_folders import GIVE_ROOT, check_folder, in_class_folders
from readers.files import (
    ListUsed,
    RepeatedImages,
    Report,
    UnknownLabel,
    check_type,
    entry_mistake,
    field,
    label_field,
    read_json,
    read_text,
    stop,
)
from readers.placing import place
from utils import UserError, mistake, printable, typed

SER_NAMES = ("surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral")
FI_NAMES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
ANNOTATORS = ("anno1", "anno2", "anno3")  # the fields with the votes of SER30K's annotators
EMOTION_ROI_NAMES = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


OTHER_LISTS = Path("other_dataset")  # of the working folder, where the published code looks for lists


class Sample(NamedTuple):
    """An image with its label, counted from 0, its text and its topic, '' if it has none.

    `votes` are the labels that annotators gave it, if they were asked for.
    """

    path: Path
    label: int
    text: str
    topic: str = ""
    votes: tuple[int, ...] = ()


def no_text(path: str) -> str:
    """The text of images that have none."""
    return ""


class Entry(NamedTuple):
    """What a list says of an image: what to call the entry, the parts of its path below the root, and a `Sample`'s."""

    where: str
    parts: tuple[str, ...]
    label: int
    text: str = ""
    topic: str = ""
    votes: tuple[int, ...] = ()


def read_ser(
    root: str | Path,
    split: str,
    report: Report = stop,
    annotations: str = "",
    *,
    texts: bool = True,
    votes: bool = False,
) -> list[Sample]:
    """Reads a split of SER30K: `train`, `val` or `test`.

    Args:
        root: the folder `SER_Dataset`, or the folder that it stands in. The lists of `Annotations/image-level` come
            before those of `Annotations`; the two are never mixed, as their splits may overlap. Links are followed
            wherever they lead; a path in a list may not leave the folder by `..` or as an absolute one.
        report: is called with each mistake in an entry and each remark on the data; if it returns, the rest is read.
            Entries whose images are missing (MissingImages) are then among the samples, other wrong ones are not.
        annotations: the folder in `Annotations` with the lists, as tools/make_splits.py writes them; '' for SER30K's.
        texts, votes: whether an entry must have a text, and the votes of the annotators; else they are not read.

    Raises:
        UserError: a folder, file or image is missing, or an entry is not as it should be; entries count from 0.
    """
    root = ser_folder(Path(root))
    source = ser_lists(root, annotations) / f"{split}.json"
    parse = partial(ser_entry, texts=texts, votes=votes)
    return collect(source, root / "Images", enumerate(ser_entries(source)), parse, report)


def read_ser_images(
    root: str | Path, split: str, report: Report = stop, annotations: str = "", *, votes: bool = False
) -> list[Sample]:
    """Reads a split of SER30K without its texts; see `read_ser`."""
    return read_ser(root, split, report, annotations, texts=False, votes=votes)


def read_fi(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of FI, `train` or `test`: from its list if there is one (`_json_list`), else from class folders.

    Images that the list does not name are not used. In class folders and below them every file is an image, except
    hidden ones; upper and lower case of their names do not matter.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    root = check_folder(Path(root), "FI's folder")
    if source := _json_list(root, "FI", split):
        report(ListUsed(f"FI {split}: the list {printable(source)}"))
        parse = partial(_pair, names=FI_NAMES, path_at=0, below=split)
        return collect(source, root, _listed(source), parse, report)
    folder = check_folder(root / split, f"the class folders of {split}, or the list {split}.json beside it")
    report(ListUsed(f"FI {split}: the class folders of {printable(folder)}, as there is no list"))
    return collect(folder, root, in_class_folders(folder, FI_NAMES, report), class_file_entry, report)


def read_emotion_roi(root: str | Path, split: str, report: Report = stop) -> list[Sample]:
    """Reads a split of EmotionROI, `train` or `test`: from its list if there is one (`_json_list`), else from the
    official split `training_testing_split/{training,testing}.txt`, whose lines count from 1.

    Raises:
        UserError: as `read_ser`, with `report` as there.
    """
    root = check_folder(Path(root), "EmotionROI's folder")
    if source := _json_list(root, "EmotionROI", split):
        report(ListUsed(f"EmotionROI {split}: the list {printable(source)}"))
        parse = partial(_pair, names=EMOTION_ROI_NAMES, path_at=1, below="")
        return collect(source, root, _listed(source), parse, report)
    source = root / "training_testing_split" / f"{split}ing.txt"
    report(ListUsed(f"EmotionROI {split}: the list {printable(source)}"))
    return collect(source, root, _lines(source), _line_entry, report)


def collect(
    source: Path, root: Path, rows: Iterable[tuple], parse: Callable[..., Entry], report: Report
) -> list[Sample]:
    """The samples of a list, which must have a row: each row's entry, as `parse` reads it, and where its image is."""
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
    pairs = [(path, entry) for path, entry in zip(paths, entries, strict=True) if path is not None]
    report_repeated(source, pairs, report)
    return [Sample(path, *entry[2:]) for path, entry in pairs]


def report_repeated(source: Path, pairs: Iterable[tuple[Path, Entry]], report: Report) -> None:
    """Reports the images that a list has more than once."""
    groups = defaultdict(list)
    for path, entry in pairs:
        groups[path].append(entry)
    repeated = [(path, entries) for path, entries in groups.items() if len(entries) > 1]
    if repeated:
        path, entries = repeated[0]
        others = sum(len({entry.label for entry in entries}) > 1 for _, entries in repeated)
        said = f"{len(repeated):,} images are listed more than once, {others:,} of them with different labels"
        where = f"{entries[0].where} and {entries[1].where}"
        report(RepeatedImages(f"{printable(source)}: {said}; the first is {printable(path)}, {where}"))


def _json_list(root: Path, name: str, split: str) -> Path | None:
    """The list `<split>.json` of a data set's folder, or else of `other_dataset/<name>` in the working folder."""
    sources = (root / f"{split}.json", OTHER_LISTS / name / f"{split}.json")
    return next((source for source in sources if os.path.lexists(source)), None)


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


def ser_entry(source: Path, number: int, entry: Any, *, texts: bool, votes: bool = False) -> Entry:
    """An entry of a list of SER30K, whose labels count from 1."""
    where = f"entry {number}"
    check_type(entry, dict, source, where)
    topic, file_name = (field(entry, key, str, source, where) for key in ("topic", "file_name"))
    text = field(entry, "text", str, source, where) if texts else ""
    for key in ("topic", "file_name"):
        if not entry[key]:
            raise entry_mistake(source, f"{where}, field {key!r}", "a name", "an empty text")
    fields = ("anno", *ANNOTATORS) if votes else ("anno",)
    label, *voted = (label_field(entry, key, range(1, len(SER_NAMES) + 1), source, where) - 1 for key in fields)
    return Entry(where, (topic, file_name), label, text, topic, tuple(voted))


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
    return Entry(where, (below, path), label, topic=path)


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
    return Entry(f"line {number}", ("images", line), EMOTION_ROI_NAMES.index(name.casefold()), topic=line)


def class_file_entry(
    folder: Path, name: str, file: tuple[str, ...], label: int, text_of: Callable[[str], str] = no_text
) -> Entry:
    """The entry for a file in a class folder; `text_of` gives the text of a path.

    Its topic is the deeper folder that it is in. In the class folder itself it is its own topic: the class folder's
    name would tell the label.
    """
    parts = (folder.name, name, *file)
    topic = "/".join(file[:-1]) or f"{name}/{file[-1]}"
    return Entry(f"class folder {name}", parts, label, text_of("/".join(parts)), topic)
