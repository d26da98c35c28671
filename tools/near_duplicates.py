"""Pictures of different splits that look alike: within some bits of a perceptual hash of 64 (imagehash.phash).

tools/check_dataset.py reports them. The hash sees the coarse shapes in grey, so that a resized or recoloured copy is
near; so are different pictures of the same outline, and all pictures without any shape. Look at the sheet before
choosing the number of bits.
"""

import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from readers.annotations import Sample
from readers.images import read_image
from tools.workers import map_images
from utils import UserError, mistake, printable, reason

MOST_BITS = 16  # of 64; beyond that, pictures that have nothing in common are as near
BLOCK = 2**22  # pairs compared at a time
LISTED = 10_000  # pairs of two splits in the report, the nearest first; all are counted
SHOWN = 20  # twins in the text
SHEET_PAIRS, SHEET_COLUMNS, SIDE, CAPTION = 48, 4, 96, 28  # pairs on the sheet, and pixels


class Hashed(NamedTuple):
    """The pictures of a split that can be read: paths, labels and hashes (n,) of 64 bits."""

    paths: list[str]
    labels: list[int]
    hashes: np.ndarray


class Near(NamedTuple):
    """The pairs of two splits within some bits, and for each picture of the second its nearest of the first.

    Attributes:
        count: of all pairs; pairs: (listed, 3), bits, place in the first and place in the second split.
        nearest, bits: (n of the second,), place in the first split and distance.
    """

    count: int
    pairs: np.ndarray
    nearest: np.ndarray
    bits: np.ndarray


def check_bits(bits: int) -> None:
    """Raises UserError for bits out of range, or if imagehash is not installed."""
    if not 0 <= bits <= MOST_BITS:
        raise UserError(f"--near-duplicates {bits}: expected 0 to {MOST_BITS} bits of 64: choose fewer")
    try:
        importlib.import_module("imagehash")  # with scipy and PyWavelets it takes a second
    except ImportError as error:
        raise UserError(f"--near-duplicates: imagehash is missing ({error}): install requirements.txt") from error


def hash_of(path: str) -> int | None:
    """The perceptual hash of a picture as `read_image` gives it; None if it cannot be read."""
    import imagehash

    with suppress(UserError):
        return int(str(imagehash.phash(read_image(path))), 16)
    return None


def compare(first: np.ndarray, second: np.ndarray, bits: int) -> Near:
    """All pairs of hashes (n,) and (m,), in blocks."""
    count, pairs = 0, np.empty((0, 3), dtype=np.int64)
    nearest, distances = np.zeros(len(second), dtype=np.int64), np.full(len(second), 255, dtype=np.uint8)
    rows = max(BLOCK // max(len(first), 1), 1)
    for start in range(0, len(second) if len(first) else 0, rows):
        apart = np.bitwise_count(second[start : start + rows, None] ^ first[None])  # (rows, n)
        nearest[start : start + rows] = apart.argmin(axis=1)
        distances[start : start + rows] = apart.min(axis=1)
        count += int(np.count_nonzero(apart <= bits))
        worst = int(pairs[-1, 0]) - 1 if len(pairs) == LISTED else bits  # what may still be listed
        if worst >= 0:
            of_second, of_first = np.nonzero(apart <= worst)
            new = np.stack([apart[of_second, of_first], of_first, of_second + start], axis=1).astype(np.int64)
            pairs = np.concatenate([pairs, new])
            pairs = pairs[np.argsort(pairs[:, 0], kind="stable")[:LISTED]]
    return Near(count, pairs, nearest, distances)


def find(splits: dict[str, list[Sample]], root: Path, bits: int, workers: int) -> dict[str, Any]:
    """The report: pairs by two splits, and the twins in train of each picture of val and test.

    Args:
        root: from which pictures are named, as in the predictions of an evaluation.

    Raises:
        RunError: a worker process has died.
    """
    known = map_images(
        hash_of, list(dict.fromkeys(str(one.path) for samples in splits.values() for one in samples)), workers, "hash"
    )
    hashed = {split: of_split(samples, known, root) for split, samples in splits.items()}
    report: dict[str, Any] = {"hash": "imagehash.phash, 64 bits", "bits": bits, "pairs": {}, "twins": {}}
    report["pictures"] = {split: len(one.paths) for split, one in hashed.items()}
    for one, other in combinations(hashed, 2):
        first, second = hashed[one], hashed[other]
        near = compare(first.hashes, second.hashes, bits)
        listed = [{"bits": b, one: first.paths[i], other: second.paths[j]} for b, i, j in near.pairs.tolist()]
        report["pairs"][f"{one}, {other}"] = {"count": near.count, "listed": listed}
        if one == "train":
            report["twins"][other] = [twin(first, second, near, place) for place in np.flatnonzero(near.bits <= bits)]
    return report


def of_split(samples: Sequence[Sample], known: dict[str, int | None], root: Path) -> Hashed:
    """The pictures of a split that could be read."""
    read = [(sample, value) for sample in samples if (value := known[str(sample.path)]) is not None]
    paths = [os.path.relpath(sample.path, root) for sample, _ in read]
    return Hashed(paths, [sample.label for sample, _ in read], np.array([value for _, value in read], dtype=np.uint64))


def twin(train: Hashed, other: Hashed, near: Near, place: int) -> dict[str, Any]:
    """A picture of val or test with the nearest one of train."""
    nearest = int(near.nearest[place])
    return {
        "image": other.paths[place],
        "twin": train.paths[nearest],
        "bits": int(near.bits[place]),
        "same_label": train.labels[nearest] == other.labels[place],
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of text, with the first twins of test."""
    said = [f"near-duplicates, within {report['bits']} of 64 bits (a note, not a mistake):"]
    said += [f"  pairs of {splits}: {pairs['count']:,}" for splits, pairs in report["pairs"].items()]
    for split, twins in report["twins"].items():
        same = sum(one["same_label"] for one in twins)
        of_all = f"{len(twins):,} of {report['pictures'][split]:,} pictures of {split} have a twin in train"
        said.append(f"  {of_all}, {same:,} of them with the same label")
    twins = report["twins"].get("test", [])
    said += [f"    {printable(one['image'])} ~ {printable(one['twin'])}, {one['bits']} bits" for one in twins[:SHOWN]]
    if len(twins) > SHOWN:
        said.append(f"    and {len(twins) - SHOWN:,} more, all in the file of --json")
    return said


def draw_sheet(report: dict[str, Any], root: Path) -> Image.Image | None:
    """Some of the pairs side by side, from the nearest to the farthest; None if there are none."""
    pairs = [pair for of_two in report["pairs"].values() for pair in of_two["listed"]]
    pairs.sort(key=lambda pair: pair["bits"])
    if not pairs:
        return None
    chosen = [pairs[place] for place in np.unique(np.linspace(0, len(pairs) - 1, SHEET_PAIRS).astype(int))]
    rows = -(-len(chosen) // SHEET_COLUMNS)
    width, height = 2 * SIDE + 16, SIDE + CAPTION + 8
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), "white")
    for number, pair in enumerate(chosen):
        left, top = number % SHEET_COLUMNS * width + 4, number // SHEET_COLUMNS * height + 4
        bits, *pictures = pair.items()
        for place, (split, name) in enumerate(pictures):
            thumbnail(sheet, root / name, left + place * (SIDE + 4), top)
            caption(sheet, f"{split} {Path(name).name}", left + place * (SIDE + 4), top + SIDE)
        caption(sheet, f"{bits[1]} bits", left, top + SIDE + CAPTION // 2)
    return sheet


def save_sheet(report_file: Path, report: dict[str, Any] | None, root: Path) -> None:
    """Draws the sheet beside the file of the whole report, if there are near-duplicates; raises UserError."""
    sheet = draw_sheet(report, root) if report else None
    if sheet is not None:
        file = report_file.with_name(f"{report_file.stem}_near_duplicates.png")
        try:
            sheet.save(file)
        except OSError as error:
            raise mistake(file, "a file to write", reason(error), "name another with --json") from error
        print(f"some of the near-duplicates are drawn in {file}")


def thumbnail(sheet: Image.Image, path: Path, left: int, top: int) -> None:
    """Puts a picture on the sheet."""
    picture = read_image(path)
    picture.thumbnail((SIDE, SIDE))
    sheet.paste(picture, (left, top))


def caption(sheet: Image.Image, text: str, left: int, top: int) -> None:
    """Writes what fits below a picture."""
    text = text.encode("ascii", "backslashreplace").decode()[:16]
    ImageDraw.Draw(sheet).text((left, top), text, fill="black")
