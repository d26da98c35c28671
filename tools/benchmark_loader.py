"""Times the way from image files to training batches beside its bare cost, interleaved in one run.

    python tools/benchmark_loader.py --output docs/benchmarks/loader_448.json
    python tools/benchmark_loader.py --data-path data/demo --input-size 128

Images: JPEG stickers of about 500 px that the tool draws itself, always the same, and those of a data set. Rows: bare,
which is decoding, random crop, flip and RandAugment called in a plain loop, the lower bound; an item of our data set,
which adds the tensor, its normalisation and a seed of its own; the item with --jpeg-draft and with --cache-images; our
loader without workers, with one and with two. All rows augment the same images in the same way. Each round times every
row once, so that a change of the machine's speed meets all alike; medians and quartiles over the rounds are printed as
a Markdown table and written as JSON. Files are read from the page cache: no disk is measured.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from readers.data_sets import DATA_SETS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from datasets import Draw, StickerDataset, build_transform, kept_generators, seed_generators
from readers.annotations import Sample
from runtime.loader import build_loader, read_batches
from tools.benchmark_measure import machine, summarize
from tools.check_dataset import guess_dataset
from utils import UserError

WORKERS = (0, 1, 2)
Step = Callable[[], float]
Rows = dict[str, dict[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON."""
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        rows = run(options)
    except UserError as error:
        print(f"benchmark_loader.py: error: {error}", file=sys.stderr)
        return 2
    command = ["python", "tools/benchmark_loader.py", *(sys.argv[1:] if argv is None else argv)]
    facts = {"command": " ".join(command), **machine("cpu"), "input_size": options.input_size}
    print(format_table(rows, facts))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"facts": facts, "seconds_an_image": rows}, indent=2) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, metavar="DIR", help="a data set to be measured as well")
    parser.add_argument("--input-size", type=int, default=448, metavar="PX", help="side of the input image")
    parser.add_argument("--images", type=int, default=128, help="images of a round, of each set")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file")
    return parser


def run(options: argparse.Namespace) -> dict[str, Rows]:
    """Seconds an image of each row, for each set of images."""
    with tempfile.TemporaryDirectory() as folder:
        sets = {"JPEG stickers": [Sample(path, 0, "") for path in draw_stickers(Path(folder), options.images)]}
        if options.data_path:
            samples = DATA_SETS[guess_dataset(options.data_path)].read(options.data_path, "train")
            sets[options.data_path.name] = [samples[i * len(samples) // options.images] for i in range(options.images)]
        return {name: measure(build_steps(samples, options), options) for name, samples in sets.items()}


def draw_stickers(folder: Path, count: int) -> list[Path]:
    """JPEG files of 440 to 560 px: shapes on a soft ground with some noise, some 40 kB each; always the same."""
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
            canvas.ellipse(
                (left, top, right, bottom), fill=tuple(generator.integers(0, 256, 3).tolist()), outline="black"
            )
        noise = generator.integers(-10, 11, (height, width, 3))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=85)
    return paths


def build_steps(samples: Sequence[Sample], options: argparse.Namespace) -> dict[str, Step]:
    """For each row a function that goes through all images once and returns the seconds that it took."""
    transform = build_transform(True, input_size=options.input_size)
    draws = [Draw(index, seed) for index, seed in enumerate(range(1000, 1000 + len(samples)))]
    dataset = StickerDataset(samples, transform)
    sets = {
        "item": dataset,
        "item, --jpeg-draft": StickerDataset(samples, transform, jpeg_draft=True),
        "item, --cache-images": StickerDataset(samples, transform, cache_images=True),
    }
    starts = range(0, len(draws), options.batch_size)
    batch_sampler = [draws[start : start + options.batch_size] for start in starts]
    steps: dict[str, Step] = {"bare": lambda: time_bare(samples, draws, transform.transforms[:3])}
    steps |= {name: lambda of_row=of_row: time_items(of_row, draws) for name, of_row in sets.items()}
    for num_workers in WORKERS:
        loader = build_loader(dataset, batch_sampler=batch_sampler, num_workers=num_workers)
        steps[f"loader, {num_workers} workers"] = lambda loader=loader: time_batches(loader)
    return steps


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


def time_items(dataset: StickerDataset, draws: Sequence[Draw]) -> float:
    """Seconds of reading items one by one."""
    began = time.perf_counter()
    for draw in draws:
        dataset[draw]
    return time.perf_counter() - began


def time_batches(loader: Any) -> float:
    """Seconds of an epoch; the workers are there from the round that is not counted."""
    began = time.perf_counter()
    for _ in read_batches(loader):
        pass
    return time.perf_counter() - began


def measure(steps: dict[str, Step], options: argparse.Namespace) -> Rows:
    """Seconds an image of each row: median and quartiles over the rounds, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            value = step() / options.images
            if number:
                seconds[name].append(value)
    return {name: summarize(values) for name, values in seconds.items()}


def format_table(sets: dict[str, Rows], facts: dict[str, Any]) -> str:
    """The measurements as a Markdown table: images a second, for each process that reads, and time over bare."""
    lines = [
        f"{facts['input_size']} px; {facts['machine']}, one thread a process, torch {facts['torch']}, {facts['date']}",
        "",
        "| images | row | images/s | quartiles | images/s a reading process | time over bare |",
        "|---|---|---|---|---|---|",
    ]
    for set_name, rows in sets.items():
        for name, values in rows.items():
            rate, low, high = (1 / values[key] for key in ("median", "upper", "lower"))
            readers = max(1, int(name.split()[1])) if name.startswith("loader") else 1
            ratio = values["median"] / rows["bare"]["median"]
            lines.append(
                f"| {set_name} | {name} | {rate:.0f} | {low:.0f} to {high:.0f} | {rate / readers:.0f} | {ratio:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
