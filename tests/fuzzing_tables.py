"""Tables, lists and texts as people and programs save them, beside what they mean.

Each case is a table or class folders with texts, and `meant.json` with what is to be read from it: the text, or path,
label and text of each image. Traits whose meaning is plain must not change it, and a fault must end in an error.
"""

import csv
import io
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

from readers.data_sets import DATA_SETS
from tools.predict import find_items
from utils import UserError

SPLITS = ("train", "val", "test")
LABELS = ("joy", "fear")
NAMES = ("0.png", "\u00fcber 1.png", "\u1100\u1161.png", "c\u0327a.PNG")
TEXTS = ("", "hi", "hello, world", "a; b\tc | d", 'so "happy"', "two\nlines", "na\u00efve \u2764", "sep=;", "0", "=1+1")
SEPARATORS = ",;\t|"
MEANT = "meant.json"
FAULTS = ("comma", "quote", "case", "column", "split", "twice", "image", "empty")


def make_table(rng: random.Random, folder: Path) -> None:
    """Images, a table of them, a list for predictions or texts of class folders, and what they mean."""
    kind = rng.choice(["csv", "csv", "list", "folder"])
    fault = rng.choice(FAULTS) if kind != "folder" and rng.random() < 0.5 else ""
    rows = [make_row(rng, folder, split, label) for split in SPLITS for label in LABELS for _ in range(2)]
    if fault and kind == "list":
        fault = rng.choice(["comma", "quote", "column", "twice"])
    meant = {"kind": kind, "fault": fault, "rows": rows}
    if kind == "folder":
        texts = {written(rng, row["path"]): row["text"] for row in rows if row["text"]}
        (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=rng.random() < 0.5), encoding="utf-8")
        for name in rng.sample(["__MACOSX", "@eaDir", ".hidden", "empty"], rng.randrange(3)):
            (folder / "train" / name).mkdir()
    else:
        (folder / "table.csv").write_bytes(table(rng, kind, [dict(row) for row in rows], fault))
    (folder / MEANT).write_text(json.dumps(meant), encoding="utf-8")


def make_row(rng: random.Random, folder: Path, split: str, label: str) -> dict[str, str]:
    """An image in a class folder, sometimes a deeper one or behind a link, with its text."""
    name = unicodedata.normalize(rng.choice(["NFC", "NFD"]), f"{rng.randrange(10**6)} {rng.choice(NAMES)}")
    parts = [split, label, *(["pack"] if rng.random() < 0.2 else []), name]
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.1:
        (folder / "pool").mkdir(exist_ok=True)
        (folder / "pool" / name).touch()
        path.symlink_to(folder / "pool" / name)
    else:
        path.touch()
    return {"path": "/".join(parts), "label": label, "split": split, "text": rng.choice(TEXTS)}


def written(rng: random.Random, path: str) -> str:
    """A path as a list may have it: in another Unicode form, with backslashes, from the folder itself."""
    path = unicodedata.normalize(rng.choice(["NFC", "NFD"]), path)
    path = rng.choice(["", "", "", "./"]) + path
    return path.replace("/", "\\") if rng.random() < 0.2 else path


def table(rng: random.Random, kind: str, rows: list[dict[str, str]], fault: str) -> bytes:
    """A table with some of the traits that spreadsheets and people give it, and the fault."""
    columns = ["path", "label", "split", "text"] if kind == "csv" else ["image", "text"]
    separator = rng.choice(SEPARATORS)
    for row in rows:
        row["path"] = row["image"] = written(rng, row["path"])
        row["label"] = rng.choice(["{}", "{}", " {}", "{} ", "{}\u00a0"]).format(row["label"])
        row["split"] = rng.choice([str, str, str.upper, str.title])(row["split"])
    spoil(rows, fault)
    rng.shuffle(columns)
    if fault == "comma":  # no spare columns beyond the text, in which the rest of it would be
        columns = [name for name in columns if name != "text"] + ["text"]
    header = [rng.choice([str, str, str.upper, str.title, " {} ".format])(name) for name in columns]
    header = [name for name in header if not (fault == "column" and name.strip().lower() in ("label", "image"))]
    if fault == "twice":
        header[0:0] = [columns[0]]
        columns[0:0] = [columns[0]]
    spare = 0 if fault == "comma" else rng.choice([0, 0, 1, 2])
    lines = [[row[name] for name in columns] + [""] * rng.choice([0, spare]) for row in rows]
    for _ in range(rng.choice([0, 0, 1, 3])):
        lines.insert(rng.randrange(len(lines) + 1), [""] * len(columns))
    text = io.StringIO(newline="")
    end = rng.choice(["\n", "\r\n", "\r"])
    quoting = csv.QUOTE_ALL if end == "\r" or rng.random() < 0.5 else csv.QUOTE_MINIMAL  # which leaves \n open
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([header + [""] * spare, *lines])
    content = text.getvalue()
    if rng.random() < 0.1 and end != "\r":
        content = f"sep={separator}{end}{content}"
    if fault == "comma":
        content += separator.join([*(rows[0][name] for name in columns[:-1]), "hello", " world"])
    if fault == "quote":
        content += separator.join([*("a" for _ in columns[1:]), '"open'])
    if fault == "empty":
        content = end * 3
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    return content.encode(encoding)


def spoil(rows: list[dict[str, str]], fault: str) -> None:
    """Puts a fault of the rows into them."""
    if fault == "case":
        rows[0]["label"] = rows[0]["label"].upper()
    elif fault == "split":
        for row in rows:
            row["split"] = row["split"].lower().replace("test", "train")
    elif fault == "image":
        rows[-1]["path"] = f"{rows[-1]['path']}.gone"


def read_any_table(folder: Path) -> None:
    """Reads a case and compares it with what is meant; raises UserError for one with a fault."""
    meant = json.loads((folder / MEANT).read_text(encoding="utf-8"))
    failures, images = [], []
    if meant["kind"] == "list":
        items = find_items([str(folder / "table.csv")], "")
        images = [(item.path, item.text) for item in items]
        assert images == [(folder / row["path"], row["text"]) for row in meant["rows"]]
    else:
        for split in SPLITS:
            try:
                images += read_split(folder, meant["kind"], split)
            except UserError as error:
                failures.append(error)
    if failures:
        assert meant["fault"], failures
        raise failures[0]
    assert not meant["fault"], f"no error of {meant['fault']}"
    if meant["kind"] != "list":
        rows = [(folder / row["path"], row["label"], row["text"]) for row in meant["rows"]]
        assert sorted(images) == sorted(rows)


def read_split(folder: Path, kind: str, split: str) -> list[tuple[Any, ...]]:
    """Path, name of the class and text of each image of a split."""
    root = folder / "table.csv" if kind == "csv" else folder
    names = DATA_SETS[kind].class_names(root)
    return [(sample.path, names[sample.label], sample.text) for sample in DATA_SETS[kind].read(root, split)]
