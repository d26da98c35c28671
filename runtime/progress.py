"""What a pass over batches tells of itself: its speed, the time left, and a bar or lines of progress."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from tqdm import tqdm

from engine import Batch
from utils import is_main_process, print0

Item = TypeVar("Item")


class Speed:
    """How fast a pass over a loader's batches goes, from here on.

    Args:
        total: batches of the pass; `done` of them were done before.
        device: the memory of a CUDA device is told as well.
    """

    def __init__(self, total: int, done: int, device: torch.device):
        self.left, self.device = total - done, device
        self.batches = self.images = 0
        self.waited = 0.0  # seconds for batches
        self.began = time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on, and notes how long each was waited for."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            self.batches += 1  # as `progress` asks when the work on it is done
            self.images += len(batch.get("label", ()))
            yield batch

    def figures(self) -> dict[str, float]:
        """For the log: images a second, the share of the time spent waiting for data, and the peak of GPU memory."""
        seconds = time.monotonic() - self.began
        if not self.images or not seconds:
            return {}
        figures = {"images_per_second": self.images / seconds, "data_wait_share": min(self.waited / seconds, 1.0)}
        if self.device.type == "cuda":
            figures["gpu_memory_mb"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        return {name: round(value, 3) for name, value in figures.items()}

    def __str__(self) -> str:
        """For the line of progress; '' before the first batch is done."""
        if not (figures := self.figures()):
            return ""
        left = (time.monotonic() - self.began) / self.batches * (self.left - self.batches)
        parts = [f"{figures['images_per_second']:.1f} images/s", f"{timedelta(seconds=math.ceil(left))} left"]
        parts.append(f"{figures['data_wait_share']:.0%} waiting for data")
        if "gpu_memory_mb" in figures:
            parts.append(f"{figures['gpu_memory_mb']:,.0f} MB of GPU memory")
        return ", ".join(parts)


def all_speeds(parts: list[dict[str, float]]) -> dict[str, float]:
    """The figures of all processes as one: images a second together, the mean wait, the largest memory."""
    if not all(parts):
        return {}
    images, waits = ([part[name] for part in parts] for name in ("images_per_second", "data_wait_share"))
    figures = {"images_per_second": round(sum(images), 3), "data_wait_share": round(sum(waits) / len(waits), 3)}
    memory = [part["gpu_memory_mb"] for part in parts if "gpu_memory_mb" in part]
    return figures | ({"gpu_memory_mb": max(memory)} if memory else {})


def progress(
    items: Iterable[Item],
    *,
    total: int,
    title: str,
    every: int = 50,
    done: int = 0,
    describe: Callable[[], str] = lambda: "",
) -> Iterator[Item]:
    """Passes the items on with a progress bar if process 0 has a terminal, else with a line every `every` items.

    Args:
        done: how many of the `total` were done before.
        describe: what to say beside the number, such as the loss.
    """
    if sys.stderr is not None and sys.stderr.isatty() and is_main_process():
        with tqdm(items, total=total, initial=done, desc=title, leave=False) as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(describe(), refresh=False)
        return
    start = time.monotonic()
    for number, item in enumerate(items, start=done + 1):
        yield item
        if number % every == 0 or number == total:
            seconds = (time.monotonic() - start) / (number - done)
            print0(join_parts(f"{title}: {number}/{total}", f"{seconds:.3f} s each", describe()))


def join_parts(*parts: str) -> str:
    """The parts that are not empty, with commas between."""
    return ", ".join(filter(None, parts))
