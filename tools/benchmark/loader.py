"""Compares reading and augmenting training images with its lower bound.

    python -m tools.benchmark loader --data-path data/demo --output docs/benchmarks/loader.json

Images: JPEG stickers of about 500 px that the tool draws itself, the same in every run, and those of a data set. Rows:
bare, which is decoding, random crop, flip and RandAugment in a plain loop; an item of the data set, which adds the
tensor, its normalisation and its own seed; the item with --jpeg-draft and with --cache-images; the loader with 0, 1 and
2 workers. All rows augment the same images in the same way. The files are in the page cache: no disk is measured.
"""

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from datasets import Draw, StickerDataset, build_transform, kept_generators, seed_generators
from readers.annotations import Sample
from readers.data_sets import DATA_SETS
from runtime.loader import build_loader, read_batches
from runtime.option_types import positive_int
from tools.benchmark.measure import Quartiles, format_table, interleave, timed, where
from tools.check_dataset import guess_dataset

WORKERS = (0, 1, 2)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", type=Path, metavar="DIR", help="a data set to be measured as well")
    parser.add_argument("--input-size", type=positive_int, default=448, metavar="PX", help="side of the input image")
    parser.add_argument("--images", type=positive_int, default=128, help="images of a round, of each set")
    parser.add_argument("--batch-size", type=positive_int, default=16)
    parser.add_argument("--rounds", type=positive_int, default=7)


def run(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Quartiles]]]:
    """The facts and the seconds an image of each row, for each set; raises UserError for a folder without data set."""
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        sets = {"JPEG stickers": [Sample(path, 0, "") for path in draw_stickers(Path(folder), options.images)]}
        if options.data_path:
            samples = DATA_SETS[guess_dataset(options.data_path)].read(options.data_path, "train")
            sets[options.data_path.name] = [samples[i * len(samples) // options.images] for i in range(options.images)]
        for name, samples in sets.items():
            results[name] = interleave(build_steps(samples, options), rounds=options.rounds)
    return {"input_size": options.input_size}, results


def draw_stickers(folder: Path, count: int) -> list[Path]:
    """JPEG files of 440 to 560 px and about 40 kB: shapes on a soft ground with some noise, the same in every run."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        width, height = generator.integers(440, 561, 2).tolist()
        ground = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = ground.resize((width, height), Image.Resampling.BICUBIC)
        canvas = ImageDraw.Draw(image)
        for _ in range(12):
            left, top = generator.integers(0, 400, 2).tolist()
            right, bottom = (np.array([left, top]) + generator.integers(20, 200, 2)).tolist()
            colour = tuple(generator.integers(0, 256, 3).tolist())
            canvas.ellipse((left, top, right, bottom), fill=colour, outline="black")
        noise = generator.integers(-10, 11, (height, width, 3))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=85)
    return paths


def build_steps(samples: Sequence[Sample], options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """For each row a function that reads all images once and returns the seconds an image."""
    transform = build_transform(True, input_size=options.input_size)
    draws = [Draw(index, seed) for index, seed in enumerate(range(1000, 1000 + len(samples)))]
    dataset = StickerDataset(samples, transform)
    sets = {
        "item": dataset,
        "item, --jpeg-draft": StickerDataset(samples, transform, jpeg_draft=True),
        "item, --cache-images": StickerDataset(samples, transform, cache_images=True),
    }
    steps: dict[str, Callable[[], float]] = {"bare": lambda: time_bare(samples, draws, transform.transforms[:3])}
    for name, items in sets.items():
        steps[name] = partial(timed, lambda items=items: deque(map(items.__getitem__, draws), 0))
    starts = range(0, len(draws), options.batch_size)
    batch_sampler = [draws[start : start + options.batch_size] for start in starts]
    for workers in WORKERS:  # they start in the round that is not counted
        loader = build_loader(dataset, batch_sampler=batch_sampler, num_workers=workers)
        steps[f"loader, {workers} workers"] = partial(timed, lambda loader=loader: deque(read_batches(loader), 0))
    return {name: lambda step=step: step() / len(samples) for name, step in steps.items()}


def time_bare(samples: Sequence[Sample], draws: Sequence[Draw], steps: Sequence[Callable]) -> float:
    """Seconds of decoding and augmenting; seeding the augmentation is not counted."""
    seconds = 0.0
    with kept_generators():
        for sample, draw in zip(samples, draws, strict=True):
            seed_generators(draw.seed)
            began = time.perf_counter()
            image = Image.open(sample.path).convert("RGB")
            for step in steps:
                image = step(image)
            seconds += time.perf_counter() - began
    return seconds


def loader_table(facts: dict[str, Any], results: dict[str, dict[str, Quartiles]]) -> str:
    """Images a second, in all and for each process that reads, and the time over bare."""
    lines = []
    for set_name, rows in results.items():
        for name, seconds in rows.items():
            rate, low, high = (1 / seconds[key] for key in ("median", "upper", "lower"))
            readers = max(1, int(name.split()[1])) if name.startswith("loader") else 1
            ratio = seconds["median"] / rows["bare"]["median"]
            cells = [f"{rate:.0f} ({low:.0f} to {high:.0f})", f"{rate / readers:.0f}", f"{ratio:.2f}"]
            lines.append([set_name, name, *cells])
    heads = ["images", "row", "images/s (quartiles)", "images/s a reading process", "time over bare"]
    return f"{facts['input_size']} px; {where(facts)}.\n\n{format_table(heads, lines)}\n"
