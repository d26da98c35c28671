"""Hostile data sets of a user's own: tables, and class folders with texts."""

import csv
import io
import random
from pathlib import Path
from typing import Any

from readers.data_sets import DATA_SETS
from readers.own_data import read_csv, read_folder
from tests.fuzzing import TEXTS, change, mutate
from tests.fuzzing_texts import check_sample, encode, put_strange_things
from utils import UserError

TABLE = "stickers.csv"
SPLITS = ("train", "val", "test")
HEADERS = [
    "path,label,split,text",
    "path,label,split",
    "text,split,label,path",
    "path,label",
    "path,path,label,split",
    "",
]


def make_own_data(rng: random.Random, folder: Path) -> None:
    """Images in class folders, and either a hostile table of them or hostile texts and folders."""
    for split in SPLITS:
        for name in ("joy", "fear"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").touch()
    if rng.random() < 0.2:
        put_strange_things(rng, folder / rng.choice(SPLITS))
    if rng.random() < 0.7:
        (folder / TABLE).write_bytes(table(rng))
    else:
        texts: Any = {f"{split}/joy/0.png": "hi" for split in SPLITS}
        for _ in range(rng.choice([0, 1, 1, 2])):
            texts = change(rng, texts)
        (folder / "texts.json").write_bytes(encode(rng, texts, is_json=True))


def table(rng: random.Random) -> bytes:
    """A table of the images, with wrong cells, rows, columns, quotes, line ends, encodings or bytes."""
    rows: Any = [
        {"path": f"{split}/{name}/0.png", "label": name, "split": split, "text": "hi, you"}
        for split in SPLITS
        for name in ("joy", "fear")
    ]
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        rows = change(rng, rows)
    header = rng.choice(HEADERS[:1] * 8 + HEADERS)
    text = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(
        text, delimiter=rng.choice(",,,,,,;\t"), lineterminator=rng.choice(["\n", "\r\n", "\r"]), quoting=quoting
    )
    writer.writerow(header.split(","))
    for row in rows if isinstance(rows, list) else [rows]:
        cells = [row.get(name, "") for name in header.split(",")] if isinstance(row, dict) else [row]
        writer.writerow(str(cell) for cell in cells + rng.choice([[]] * 9 + [TEXTS]))
    content = text.getvalue().replace('"', rng.choice(['"'] * 20 + ["", '"""']))
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
    data = content.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return mutate(rng, data) if rng.random() < 0.3 else data


def read_own_data(folder: Path) -> None:
    """The table if there is one, else the class folders; the last error is raised where no split gave samples."""
    dataset, root, read = (
        ("csv", folder / TABLE, read_csv) if (folder / TABLE).is_file() else ("folder", folder, read_folder)
    )
    failures, results = [], 0
    for split in SPLITS:
        try:
            samples = read(root, split)
            classes = len(DATA_SETS[dataset].class_names(root))
        except UserError as error:
            failures.append(error)
            continue
        results += 1
        for sample in samples:
            check_sample(sample, folder, classes)
    assert all(" ".join(str(failure).split()).isprintable() for failure in failures)
    if not results:
        raise failures[-1]
