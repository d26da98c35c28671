"""Draws what the demo's backbone is pretrained on: every emoji in every style of the demo set, as class folders.

    python -m tools.demo_set.pretraining                       # data/pretraining, about 2 minutes

A class is a subgroup of Unicode, such as face-smiling or animal-bird (subgroups.csv). Left out is what would give the
demo away: the pictures of val and test of its split by image, any with the same pixels, and every emoji of val and test
of its split by concept, with all sequences that begin with one. The same command gives the same files.
"""

import csv
import io
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()

from PIL import Image
from tqdm import tqdm

from tools.demo_set.made_set import MadeSet, build_parser, parse
from tools.demo_set.stickers import (
    LABELS,
    SPLITS,
    draw_stickers,
    licences,
    make_request,
    new_png,
    read_labels,
    split_stickers,
)
from tools.demo_set.styles import STYLES, emoji_of, pixels_on_white
from tools.start import start

RECIPE = 1  # raise it when the same options give other files
SUBGROUPS = Path(__file__).with_name("subgroups.csv")
CONTENT = frozenset({*SPLITS, "LICENSES.md"})
SHARES = {"val": 0.03, "test": 0.03}  # the rest is train
LEAST_PICTURES = 3  # of a class; smaller ones are left out
DEMO_SEED = 0


class HeldOut(NamedTuple):
    """What the demo's val and test splits have: pixels on white, and the first code points of emoji."""

    pixels: set[bytes]
    first: set[str]


class Picture(NamedTuple):
    """A picture of the set, its place below the split, and its class."""

    class_name: str
    file_name: str
    png: bytes


def held_out(size: int, val_share: float) -> HeldOut:
    """What the backbone must not see, of both splits of the demo set."""
    stickers = draw_stickers(read_labels(LABELS), size)
    by_image, by_concept = (
        [
            one
            for one, name in zip(stickers, split_stickers(stickers, split, DEMO_SEED, val_share), strict=True)
            if name != "train"
        ]
        for split in ("image", "concept")
    )
    return HeldOut(
        {pixels_on_white(Image.open(io.BytesIO(one.png))) for one in by_image},
        {one.emoji.codepoint.split("-")[0] for one in by_concept},
    )


def read_subgroups(path: Path) -> dict[str, str]:
    """The Unicode subgroup of each emoji, tones and genders left out of its code points."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["codepoint"]: row["subgroup"] for row in csv.DictReader(file)}


def draw_pictures(size: int, out: HeldOut, class_of: dict[str, str]) -> Iterator[Picture]:
    """Every emoji that has a class, in every style, if it is not held out; each picture once."""
    seen = set(out.pixels)
    for style in STYLES:
        for codepoint in tqdm(style.codepoints(), desc=style.topic, disable=None, leave=False):
            class_name = class_of.get(emoji_of(codepoint))
            if class_name is None or codepoint.split("-")[0] in out.first:
                continue
            if png := new_png(style.draw(codepoint, size), seen):
                yield Picture(class_name, f"{style.topic}-{codepoint}.png", png)


def split_pictures(pictures: Sequence[Picture], seed: int) -> Iterator[tuple[str, Picture]]:
    """The split of each picture of a class with enough of them; train has at least one of each class."""
    classes = defaultdict(list)
    for one in pictures:
        classes[one.class_name].append(one)
    rest = []
    lot = random.Random(f"pretraining {seed}")
    for _, members in sorted(classes.items()):
        if len(members) >= LEAST_PICTURES:
            first = lot.randrange(len(members))
            yield "train", members[first]
            rest += members[:first] + members[first + 1 :]
    lot.shuffle(rest)
    counts = {split: round(share * len(rest)) for split, share in SHARES.items()}
    names = [split for split, count in counts.items() for _ in range(count)]
    yield from zip(names + ["train"] * (len(rest) - len(names)), rest, strict=True)


def make_set(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Draws and writes a whole set into a new folder, and returns its counts."""
    options = request["options"]
    pictures = list(
        draw_pictures(options["size"], held_out(options["size"], options["val_share"]), read_subgroups(SUBGROUPS))
    )
    counts, classes = Counter(), set()
    for split, one in split_pictures(pictures, options["seed"]):
        path = folder / split / one.class_name / one.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.png)
        counts[split] += 1
        classes.add(one.class_name)
    (folder / "LICENSES.md").write_text(licences(request["packages"]), encoding="utf-8")
    return {"images": counts.total(), "by_split": dict(counts), "classes": len(classes)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the set that the arguments ask for, or says that it is there.

    Raises:
        UserError: a missing package, an output that may not or cannot be written.
    """
    what = "Draws the pictures that the demo's backbone is pretrained on."
    options = parse(build_parser("pretraining", what, Path("data/pretraining")), arguments)
    began = time.perf_counter()
    request = make_request(RECIPE, {key: getattr(options, key) for key in ("seed", "size", "val_share")})
    made_set = MadeSet(options.output, "pretraining", CONTENT, "*/*/*.png", request)
    if record := made_set.ensure(lambda folder: make_set(folder, request), force=options.force):
        counts = ", ".join(f"{split} {count}" for split, count in record["by_split"].items())
        what = f"{record['images']} pictures of {record['classes']} classes in {time.perf_counter() - began:.0f} s"
        print(f"{options.output}: {what} ({counts})")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that unfinished folders are removed
    start(main)
