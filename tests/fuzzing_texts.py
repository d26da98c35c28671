"""Hostile annotations and config files."""

import json
import os
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from readers.annotations import Sample, read_emotion_roi, read_fi, read_ser
from readers.data_sets import DATA_SETS
from runtime.options import build_parser, parse_options
from tests.fuzzing import TEXTS, change, mutate, value
from utils import UserError

LISTS = {  # a list of each kind, and where its images lie
    "Annotations/train.json": "Images",
    "Annotations/image-level/test.json": "Images",
    "train.json": "train",
    "test.json": "",
    "training_testing_split/training.txt": "images",
}
READERS = [(read_ser, "SER", split) for split in ("train", "val", "test")]
READERS += [(read_fi, "FI", split) for split in ("train", "test")]
READERS += [(read_emotion_roi, "EmotionROI", split) for split in ("train", "test")]


def make_annotations(rng: random.Random, folder: Path) -> None:
    """A data set of one of the three layouts with a hostile list, and hostile things beside its images."""
    name = rng.choice([*LISTS, "class folders"])
    names = DATA_SETS["FI" if name == "class folders" else "EmotionROI"].names
    root = folder / LISTS.get(name, "train")
    for label, class_name in enumerate(
        names if name in ("class folders", "training_testing_split/training.txt") else ["joy"]
    ):
        (root / class_name).mkdir(parents=True)
        (root / class_name / f"{label}.png").touch()
    if rng.random() < 0.2 or name == "class folders":
        put_strange_things(rng, root)
    if name == "class folders":
        return
    content = valid_list(rng, name)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        content = change(rng, content)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.02:
        put_strange_thing(rng, folder / name)
        return
    (folder / name).write_bytes(encode(rng, content, is_json=name.endswith(".json")))


def valid_list(rng: random.Random, name: str) -> Any:
    """The content of a list whose images are there."""
    count = rng.choice([1, 2, 5])
    if name.startswith("Annotations"):
        entry = {"topic": "joy", "file_name": "0.png", "text": "hi", "anno1": 1, "anno2": 1, "anno3": 2, "anno": 1}
        return {"annotations": [dict(entry) for _ in range(count)]}
    if name == "train.json":
        return [["joy/0.png", 0] for _ in range(count)]
    if name == "test.json":
        return [[0, "joy/0.png"] for _ in range(count)]
    return ["joy/3.png" for _ in range(count)]


def encode(rng: random.Random, content: Any, *, is_json: bool) -> bytes:
    """A list as bytes, sometimes in another encoding, nested without end, or mutated."""
    if is_json:
        text = json.dumps(content, ensure_ascii=rng.random() < 0.7)
    else:
        text = "\n".join(map(str, content)) if isinstance(content, list) else str(content)
    if rng.random() < 0.03:
        text = rng.choice(["[", '{"annotations":[', '{"a":']) * 50_000
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
    data = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return mutate(rng, data) if rng.random() < 0.4 else data


def put_strange_things(rng: random.Random, root: Path) -> None:
    """Links, pipes and folders where images should be, and class folders renamed or gone."""
    for folder in sorted(root.iterdir()):
        kind = rng.randrange(8)
        if kind == 0:
            put_strange_thing(rng, folder / "x.png")
        elif kind == 1:
            names = [
                folder.name.upper(),
                f"{folder.name} ",
                f"{folder.name}\n",
                f"\x1b[2J{folder.name}",
                f".{folder.name}",
            ]
            folder.rename(root / rng.choice(names))
        elif kind == 2:
            shutil.rmtree(folder)
            put_strange_thing(rng, folder)
        elif kind == 3:
            (folder / os.fsdecode(b"\xff\xfe\n.png")).touch()


def put_strange_thing(rng: random.Random, path: Path) -> None:
    """A link out of the data set, to itself or to nowhere, a pipe, a folder, or a device's link in a file's place."""
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.symlink_to(["/dev/zero", path, "nowhere", "/", path.parent][kind - 2] if kind < 6 else "..")


def read_annotations(folder: Path) -> None:
    """All readers on all splits; the last error is raised where none gave samples."""
    failures, results = [], 0
    for read, dataset, split in READERS:
        try:
            samples = read(folder, split)
        except UserError as error:
            failures.append(error)
            continue
        results += 1
        for sample in samples:
            check_sample(sample, folder, len(DATA_SETS[dataset].names))
    assert all(" ".join(str(failure).split()).isprintable() for failure in failures)
    if not results:
        raise failures[-1]


def check_sample(sample: Sample, folder: Path, classes: int) -> None:
    """What every sample must be: an existing file, by its path inside the folder, a label of the set, a text."""
    assert sample.path.is_file()
    assert sample.path.is_relative_to(folder)
    assert ".." not in sample.path.parts
    assert type(sample.label) is int
    assert 0 <= sample.label < classes
    assert type(sample.text) is str


PROGRAMS = [
    "(" * 5000,
    "cfg = " + "-" * 50_000 + "1",
    "cfg = {" * 500,
    "import nothing",
    "_base_ = 5",
    "_base_ = ['x.py']",
]
PROGRAMS += [
    "_base_ = 'a::b.py'",
    "{{ fileDirname }}",
    "{{$HOME:}}",
    "{{ _base_.x }}",
    "cfg = {**{5: 6}}",
    "raise SystemExit(0)",
]
PROGRAMS += [
    "cfg = 0x" + "f" * 10_000,
    "cfg = dict(alpha=0x" + "f" * 10_000 + ")",
    "cfg = dict(aa='%s')" % ("z" * 10**5),
    "del x",
]


@cache
def option_defaults() -> dict[str, Any]:
    """Every option with its default."""
    return vars(build_parser({}).parse_args([]))


def make_config(rng: random.Random, folder: Path) -> None:
    """A config file with wrong values, types, keys, syntax or bytes, but no program."""
    defaults = option_defaults()
    names = rng.sample(list(defaults), rng.choice([1, 2, 5, 20]))
    options = {name: defaults[name] for name in names}
    for _ in range(rng.choice([0, 1, 1, 3])):
        options[rng.choice([*defaults] * 3 + [*TEXTS, "_base_", "_delete_", "filename", "text", "cfg", 5, None])] = (
            value(rng)
        )
    literal = "{" + ", ".join(f"{key!r}: {write(item)}" for key, item in options.items()) + "}"
    kind = rng.randrange(6)
    lines = [f"{key} = {write(item)}" for key, item in options.items() if isinstance(key, str) and key.isidentifier()]
    text = "\n".join(lines) if kind == 0 else f"cfg = {literal}"
    if kind == 1:
        text = rng.choice([f"cfg = {write(value(rng))}", *PROGRAMS])
    elif rng.random() < 0.001:
        text = "_base_ = './config.py'"  # itself, a second until Python's limit of recursion
    encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "latin-1"])
    data = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    if rng.random() < 0.4:
        data = mutate(rng, data)
    name = rng.choice(["config.py"] * 30 + ["config.json", "config.yaml", "config.txt", "config"])
    (folder / name).write_bytes(data)


def write(item: Any) -> str:
    """A value as a config file writes it."""
    return json.dumps(item) if isinstance(item, str) and len(item) > 3 else str_of(item)


def str_of(item: Any) -> str:
    """`repr`, with numbers that Python's own would not read back."""
    return repr(item).replace("nan", "float('nan')").replace("inf", "float('inf')")


def read_any_config(folder: Path) -> None:
    """The options of the config; each must have the type of its default."""
    [path] = folder.iterdir()
    options = vars(parse_options(["--config", str(path)], {}))
    for name, default in option_defaults().items():
        found = options[name]
        if isinstance(default, bool | str):
            assert type(found) is type(default), (name, found)
        elif isinstance(default, int | float):
            assert type(found) in (int, float), (name, found)
        assert not isinstance(found, str) or found.isprintable()
