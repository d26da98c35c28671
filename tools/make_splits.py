"""Makes own splits of a data set: by image, or by topic, so that test has sticker packs that train has never seen.

    python tools/make_splits.py SER_Dataset --by topic --name topics            # train 70 %, val 10 %, test 20 %
    python tools/make_splits.py SER_Dataset --by topic --folds 5 --name packs   # five folds
    python main_V.py --dataset SER_V --data-path SER_Dataset --annotations packs/fold0 --output_dir runs/packs0
    python tools/make_splits.py pictures.csv --by pack --folds 5 --name packs   # a table with a column `pack`
    python tools/make_splits.py PICTURES --by 2 --name packs                    # PICTURES/<class>/<pack>/<image>
    python tools/make_splits.py SER_Dataset --by order --name orders            # the same splits in two other orders

SER30K: from all_annos.json if it is there, else from the three lists together, into Annotations/NAME/, with folds into
NAME/fold0/, fold1/, ... Other data: a table NAME.csv, with folds NAME-fold0.csv, ..., beside the table or in the folder
given, for --dataset csv. Each fold is test once, and the next one is its val. Images alone do not have to be there.

--by is `image`, or what must not be in two splits at once: SER30K: topic; a table: the name of a column; class folders:
the number of a folder level. The class is the first other level; a first level train, val and test is not counted.
With `order` SER30K's splits stay: Annotations/NAME/by-topic/ has their lists in the order of the topics, NAME/shuffled/
in an order that is drawn. A prediction of TGCA-PVT depends on the order (--context batch).
"""

import argparse
import csv
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project's modules

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


import numpy as np

from readers.annotations import SER_NAMES, ser_entries, ser_entry, ser_folder, ser_lists
from readers.class_folders import check_distinct, files_below, plain_label, report_left_out
from readers.files import entry_mistake, stop
from readers.own_data import FOLDER_TEXTS, OWN_SPLITS, FolderTexts
from readers.tables import column_name, read_table
from runtime.option_types import natural
from tools.splitting import Division, divide
from tools.start import start
from utils import UserError, listed, mistake, printable, reason, typed, write_json, write_whole

ALL_ANNOTATIONS = "all_annos.json"
IMAGE = "image"
ORDER = "order"


class Items(NamedTuple):
    """What is divided: entries or rows, the class of each, and its group, '' for all by image."""

    entries: list[dict[str, Any]]
    labels: list[str]
    groups: list[str]


def read_ser_items(root: Path, by: str) -> Items:
    """The entries of SER30K's lists, each sticker once.

    Raises:
        UserError: a wrong --by, a wrong entry, or a sticker with two different entries.
    """
    if by not in (IMAGE, "topic"):
        raise UserError(f"--by {printable(by)}: expected image, topic or order for SER30K: choose one of them")
    lists = ser_lists(root)
    places = [folder / ALL_ANNOTATIONS for folder in dict.fromkeys((lists, root / "Annotations"))]
    sources = [place for place in places if place.is_file()][:1]
    sources = sources or [lists / f"{split}.json" for split in OWN_SPLITS]
    entries: dict[tuple[str, ...], dict[str, Any]] = {}
    labels, count = [], 0
    for source in sources:
        for number, entry in enumerate(ser_entries(source)):
            count += 1
            parsed = ser_entry(source, number, entry, texts=False)  # SER_V needs none
            if parsed.parts not in entries:
                entries[parsed.parts] = entry
                labels.append(SER_NAMES[parsed.label])
            elif entries[parsed.parts] != entry:
                expected = "one entry for each sticker"
                raise entry_mistake(source, parsed.where, expected, f"{listed(parsed.parts)} again, and different")
    print(f"{', '.join(printable(source) for source in sources)}: {len(entries):,} stickers")
    if count > len(entries):
        print(f"{count - len(entries):,} entries are there twice and are written once")
    return Items(
        list(entries.values()), labels, [entry["topic"] if by == "topic" else "" for entry in entries.values()]
    )


def read_table_items(file: Path, by: str) -> Items:
    """The rows of a table, each path once; a column `split` is not used. Raises UserError as `read_ser_items`."""
    rows: dict[str, dict[str, str]] = {}
    groups: dict[str, str] = {}
    required = ("path", "label") if by == IMAGE else ("path", "label", column_name(by))
    for number, row in read_table(file, required, stop, more=None):
        if not all(row[column].strip() for column in required):
            expected = f"a {', a '.join(required[:-1])} and a {required[-1]}"
            raise entry_mistake(file, f"line {number}", expected, typed(list(row.values())))
        name = row["path"]
        groups[name] = "" if by == IMAGE else plain_label(row[required[-1]])
        row = {column: cell for column, cell in row.items() if column != "split"}
        if rows.setdefault(name, row) != row:
            expected = "one row for each image"
            raise entry_mistake(file, f"line {number}", expected, f"{printable(name)} again, and different")
    print(f"{printable(file)}: {len(rows):,} images")
    labels = [plain_label(row["label"]) for row in rows.values()]
    return Items(list(rows.values()), labels, list(groups.values()))


def read_folder_items(root: Path, by: str) -> Items:
    """The images below a folder as rows of a table. Raises UserError as `read_ser_items`."""
    if by != IMAGE and not (by.isdecimal() and int(by)):
        raise UserError(f"--by {printable(by)}: expected image, or the number of a folder level from 1: give one")
    level = None if by == IMAGE else int(by) - 1
    of_systems: list[str] = []
    paths = sorted(parts for parts in files_below(root, of_systems) if len(parts) > 1)
    report_left_out(root, [], of_systems, stop)
    above = int(bool(paths) and all(parts[0] in OWN_SPLITS for parts in paths))
    texts, items = FolderTexts(root / FOLDER_TEXTS), Items([], [], [])
    for parts in paths:
        levels = parts[above:-1]
        if len(levels) < (1 if level is None else max(level + 1, 2)):
            found = f"only {len(levels)} above {printable('/'.join(parts))}"
            expected = "a folder of the class" if level is None else f"a folder of the class and one of level {by}"
            raise mistake(root, expected, found, "move the image, or give another --by")
        name = "/".join(parts)
        label = levels[0 if level != 0 else 1]
        items.entries.append({"path": name, "label": label} | ({"text": texts.of(name)} if texts.texts else {}))
        items.labels.append(plain_label(label))
        items.groups.append("" if level is None else levels[level])
    print(f"{printable(root)}: {len(paths):,} images" + (f", texts of {FOLDER_TEXTS}" if texts.texts else ""))
    return items


def read_in_orders(root: Path, seed: int) -> tuple[Items, dict[str, Division]]:
    """The entries of SER30K's three lists, and the splits that they are, by topic and shuffled.

    The order within a topic is drawn too: in a list ordered by class, neighbours would tell the class.

    Raises:
        UserError: a list that is missing or wrong.
    """
    items, draw, shuffled = Items([], [], []), np.random.default_rng(seed), {}
    for split in OWN_SPLITS:
        source, first = ser_lists(root) / f"{split}.json", len(items.entries)
        for number, entry in enumerate(ser_entries(source)):
            items.labels.append(SER_NAMES[ser_entry(source, number, entry, texts=False).label])
            items.groups.append(entry["topic"])
            items.entries.append(entry)
        shuffled[split] = draw.permutation(np.arange(first, len(items.entries)))
    by_topic = {
        split: np.array(sorted(members, key=lambda member: items.groups[member]), dtype=int)
        for split, members in shuffled.items()
    }
    return items, {"by-topic": by_topic, "shuffled": shuffled}


def write_lists(target: Path, items: Items, divisions: dict[str, Division]) -> list[str]:
    """Writes lists of SER30K's form into a new folder, which is there whole or not at all; returns their folders."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, division in divisions.items():
            (partial / name).mkdir(parents=True)
            for split, members in division.items():
                content = {"annotations": [items.entries[member] for member in members.tolist()]}
                write_json(partial / name / f"{split}.json", content)
        partial.rename(target)
    except (OSError, UserError) as error:
        raise not_written(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [str(target / name) for name in divisions]


def write_tables(targets: Sequence[Path], items: Items, divisions: Sequence[Division]) -> list[str]:
    """Writes a table for each division, with the columns of the rows and `split`; returns their names."""
    columns = [*items.entries[0], "split"]
    for target, division in zip(targets, divisions, strict=True):
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        split_of = {member: split for split, members in division.items() for member in members.tolist()}
        writer.writerows(entry | {"split": split_of[number]} for number, entry in enumerate(items.entries))
        try:
            write_whole(target, text.getvalue().encode())
        except UserError as error:
            for one in targets:
                one.unlink(missing_ok=True)  # none of them was there before
            raise not_written(target, error) from error
    return [str(target) for target in targets]


def not_written(target: Path, error: OSError | UserError) -> UserError:
    """The error for a file or folder that cannot be written; the advice of `write_whole` is for a training."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return mistake(target, "a place to write", reason(cause or error), "make room or check the permissions")


def account(items: Items, divisions: Sequence[Division]) -> str:
    """How many images of each class the splits have, or of folds their tests, and the farthest from the class's share.

    A class's share of a split is its share of all images.
    """
    if len(divisions) == 1:
        parts = dict(divisions[0])
    else:
        parts = {f"fold{number}": division["test"] for number, division in enumerate(divisions)}
    labels, classes = np.array(items.labels), sorted(set(items.labels))
    counts = {name: Counter(labels[members].tolist()) for name, members in parts.items()}
    totals, width = Counter(items.labels), max(map(len, [*classes, "class"])) + 2
    lines = [f"{'class':{width}}" + "".join(f"{name:>9}" for name in parts)]
    lines += [f"{printable(one):{width}}" + "".join(f"{counts[name][one]:9,}" for name in parts) for one in classes]
    lines.append(f"{'all':{width}}" + "".join(f"{len(members):9,}" for members in parts.values()))
    if any(items.groups):
        groups = np.array(items.groups)
        lines.append(f"{'groups':{width}}" + "".join(f"{len(set(groups[one])):9,}" for one in parts.values()))
    off = {
        (name, one): counts[name][one] - totals[one] * len(members) / len(labels)
        for name, members in parts.items()
        for one in classes
    }
    (name, one), most = max(off.items(), key=lambda item: abs(item[1]))
    lines.append(f"farthest from a class's share: {printable(one)} in {name}, {most:+.1f} images")
    lines += [f"warning: {name} has no {printable(one)}" for name, one in off if not counts[name][one]]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="SER30K's folder, a table (.csv), or a folder of class folders")
    parser.add_argument("--by", required=True, metavar="WHAT", help="image, topic, a column, a folder level, order")
    parser.add_argument("--name", required=True, help="name of the new folder of lists, or of the new table")
    parser.add_argument("--folds", type=int, metavar="K", help="folds, at least 3 (default: one split, 70/10/20 %%)")
    parser.add_argument("--seed", type=natural, default=0, help="of the draw (default: 0)")
    return parser


def targets_of(folder: Path, name: str, is_lists: bool, folds: int | None) -> list[Path]:
    """The folder or the tables to write; raises UserError if a name does not fit or one is there already."""
    if not name.isprintable() or Path(name).name != name or name.startswith(".") or name == "image-level":
        raise UserError(f"--name {printable(name)}: expected a plain name, not image-level: choose another")
    if is_lists:
        targets = [folder / name]
    else:
        targets = [folder / f"{name}{end}.csv" for end in ([""] if not folds else [f"-fold{i}" for i in range(folds)])]
    for target in targets:
        if os.path.lexists(target):
            raise UserError(f"--name {name}: {printable(target)} is there already: choose another name, or remove it")
    return targets


def read_and_divide(data: Path, is_lists: bool, options: argparse.Namespace) -> tuple[Items, list[Division]]:
    """The items of a data set and their divisions; raises UserError for wrong data."""
    read = read_ser_items if is_lists else read_table_items if data.is_file() else read_folder_items
    items = read(data, options.by)
    if not items.entries:
        raise mistake(data, "at least one image", "none", "complete the data set")
    check_distinct(data, "labels", tuple(sorted(set(items.labels))), "write them alike")
    return items, divide(items.labels, None if options.by == IMAGE else items.groups, options.folds, options.seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Divides, writes and prints the class counts.

    Raises:
        UserError: wrong data or flags, or a file that cannot be written; then nothing is written.
    """
    options = build_parser().parse_args(arguments)
    data, is_lists = options.data, False
    if options.folds is not None and options.folds < 3:
        raise UserError(f"--folds {options.folds}: expected at least 3, as one is test and one is val")
    if data.is_file():
        folder = data.parent
    elif any((data / part / "Annotations").is_dir() for part in ("", "SER_Dataset")):
        data, is_lists = ser_folder(data), True
        folder = data / "Annotations"
    elif data.is_dir():
        folder = data
    else:
        expected = "SER30K's folder, a table, or a folder of class folders"
        raise mistake(data, expected, "no such file or folder", "name it")
    targets = targets_of(folder, options.name, is_lists, options.folds)
    if is_lists and options.by == ORDER:
        items, orders = read_in_orders(data, options.seed)
        written = write_lists(targets[0], items, orders)
        divisions = [orders["shuffled"]]
    else:
        items, divisions = read_and_divide(data, is_lists, options)
        names = [""] if len(divisions) == 1 else [f"fold{number}" for number in range(len(divisions))]
        by_name = dict(zip(names, divisions, strict=True))
        written = write_lists(targets[0], items, by_name) if is_lists else write_tables(targets, items, divisions)
    print(account(items, divisions))
    print(f"written to {', '.join(map(printable, written))}")
    if is_lists:
        print(f"train on it with --annotations {' or '.join(os.path.relpath(one, folder) for one in written)}")
    else:
        print(f"train on it with --dataset csv --data-path {printable(written[0])}")


if __name__ == "__main__":
    start(main)
