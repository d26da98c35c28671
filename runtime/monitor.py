"""What watches over a run: signals that ask it to end, the watchdog of --timeout, the trace of --profile."""

import faulthandler
import itertools
import math
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets import BadImage
from engine import Batch
from runtime.loader import read_batches
from utils import Interrupted, Processes, is_main_process, largest, print0

Item = TypeVar("Item")

# SLURM sends SIGTERM at the end of its patience and, if asked to (--signal), SIGUSR1 some time before.
EXIT_CODES = {
    getattr(signal, name): code
    for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143))
    if hasattr(signal, name)  # not every system has SIGUSR1
}


class StopSignals:
    """While this context is open, the first signal is noted in `exit_code` and later ones change nothing.

    Args:
        speaks: whether this process says that it got a signal.

    Attributes:
        exit_code: what the process is to end with; 0 while no signal has come.
    """

    def __init__(self, *, speaks: bool = True):
        self.speaks = speaks
        self.exit_code = 0

    def __enter__(self) -> "StopSignals":
        self.before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.exit_code and self.speaks:
            text = f"{signal.Signals(number).name}: the run ends after this step, with a checkpoint\n"
            os.write(2, text.encode())  # print may be what the signal has interrupted, and cannot be entered twice
        self.exit_code = self.exit_code or EXIT_CODES[number]


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise Interrupted at once, as Ctrl-C raises KeyboardInterrupt: before there is a training."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(EXIT_CODES[number])

    before = {number: signal.signal(number, end) for number in EXIT_CODES if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watchdog:
    """While this context is open, ends the process with exit code 1 once nothing has moved for `timeout` seconds.

    It says where this process stands (its position and the stack of each thread) and, with several processes, which of
    the others no longer answers, as a stopped process or a lost machine would. A collective waits for the slowest
    process, so that all of them stop moving when one hangs: each tells its own place.

    Args:
        timeout: seconds.
        store: of the process group, through which the processes see each other; None if there is one process.
    """

    def __init__(self, timeout: float, *, rank: int = 0, world_size: int = 1, store: dist.Store | None = None):
        self.timeout = timeout
        self.tick = min(max(timeout / 8, 0.1), 15)
        self.rank, self.world_size, self.store = rank, world_size, store
        self.position = "the start"
        self.moved = self.exchanged = time.monotonic()
        self.answers: dict[int, tuple[int, float]] = {}  # process: its last count, and when that changed
        self.closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat(self.position)
        self.exchanged = self.moved
        for target in (self._watch, self._exchange) if self.store else (self._watch,):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()

    def beat(self, position: str) -> None:
        """Notes that the run has moved, to `position`."""
        self.position, self.moved = position, time.monotonic()

    def passing(self, items: Iterable[Item], title: str, *, start: int = 0) -> Iterator[Item]:
        """Passes batches on, with a beat before and after each is fetched; they count from `start`."""
        iterator = iter(items)
        for number in itertools.count(start):
            self.beat(f"{title}, batch {number}, waiting for its images")
            try:
                item = next(iterator)
            except StopIteration:
                break
            self.beat(f"{title}, batch {number}, computing")
            yield item
        self.beat(f"{title}, after its last batch")

    def _watch(self) -> None:
        while not self.closed.wait(self.tick):
            if time.monotonic() - self.moved > self.timeout:
                self._end()

    def _exchange(self) -> None:
        """Tells the other processes that this one lives, and notes whether they do."""
        assert self.store is not None
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        for count in itertools.count():
            try:
                self.store.set(f"alive/{self.rank}", str(count))
                for rank in others:
                    if self.store.check([f"alive/{rank}"]):
                        self._note(rank, int(self.store.get(f"alive/{rank}")))
            except (RuntimeError, ValueError):
                return  # the store went with its process; the collective that waits for it says so
            self.exchanged = time.monotonic()
            if self.closed.wait(self.tick):
                return

    def _note(self, rank: int, count: int) -> None:
        if rank not in self.answers or self.answers[rank][0] != count:
            self.answers[rank] = (count, time.monotonic())

    def _silent(self) -> str:
        """Which processes do not answer."""
        limit = time.monotonic() - max(4 * self.tick, 1)
        if self.store and self.exchanged < limit:
            return "; the process that keeps the rendezvous, 0 or the launcher, does not answer"
        silent = [str(rank) for rank, (_, seen) in self.answers.items() if seen < limit]
        return f"; process {', '.join(silent)} does not answer: stopped, or its machine is lost" if silent else ""

    def _end(self) -> None:
        print(
            f"{os.path.basename(sys.argv[0])}: error: process {self.rank} of {self.world_size} has not moved for "
            f"{self.timeout:g} s (--timeout), at: {self.position}{self._silent()}; where it stands:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr)
        os._exit(1)  # the main thread hangs and cannot be asked to end


WARMUP = 2  # steps before the trace begins: the first ones are not like the others


@contextmanager
def profiling(steps: int | None, path: Path) -> Iterator[Callable[[], None]]:
    """Traces `steps` steps after the first two into a file; nothing if `steps` is None.

    Yields:
        A function to be called after each step.
    """
    if steps is None:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print0(profiler.key_averages().table(sort_by=order, row_limit=12))
        print0(f"trace of {steps} steps: {path}")

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=WARMUP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:
        yield profiler.step


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


class Monitor(ExitStack):
    """What watches over a run while it trains or evaluates: signals, a hang, the trace, progress, images skipped.

    Args:
        options: `timeout`, `log_every`, and for a training `profile` and `output_dir`.
        trains: whether a signal is followed by a checkpoint and --profile has an effect.

    Attributes:
        speed: of the last pass over batches.
    """

    def __init__(self, options: Namespace, processes: Processes, *, trains: bool):
        super().__init__()
        self.options, self.processes, self.trains = options, processes, trains

    def __enter__(self) -> "Monitor":
        super().__enter__()
        processes, steps = self.processes, self.options.profile if self.trains and self.processes.is_main else None
        group: dict[str, Any] = {"rank": processes.rank, "world_size": processes.world_size, "store": processes.store}
        self.stop = self.enter_context(StopSignals(speaks=self.trains and processes.is_main))
        self.watchdog = self.enter_context(Watchdog(self.options.timeout, **group))
        self.trace = self.enter_context(profiling(steps, Path(self.options.output_dir) / "trace.json"))
        return self

    def batches(
        self,
        loader: DataLoader,
        title: str,
        skipped: dict[int, BadImage],
        *,
        done: int = 0,
        together: bool = False,
        describe: Callable[[], str] = lambda: "",
    ) -> Iterator[Batch]:
        """The batches of a loader, with progress; `skipped` takes the images that were left out or replaced.

        Args:
            done: how many batches of the loader's epoch were done before.
            together: whether the processes agree before each batch if one of them has to stop; those with fewer
                batches take part in all rounds.
            describe: see `progress`.

        Raises:
            Interrupted: with `together`, on every process, if one of them got a signal.
        """
        total, every = len(loader), self.options.log_every
        self.speed = Speed(total, done, self.processes.device)
        batches = self.watchdog.passing(self.speed.timed(read_batches(loader)), title, start=done)
        if together:
            batches = self._until_stopped(batches, largest(total))
        told = {"total": total, "title": title, "every": every, "done": done}
        for batch in progress(batches, **told, describe=lambda: join_parts(describe(), str(self.speed))):
            skipped.update((image.index, image) for image in batch["skipped"])
            yield batch

    def after_step(self) -> None:
        """Takes note of a finished step; raises Interrupted on every process if one of them got a signal."""
        self.trace()
        self.check_signals()

    def check_signals(self) -> None:
        """Raises Interrupted on every process if one of them got a signal; all processes take part."""
        if exit_code := largest(self.stop.exit_code):
            raise Interrupted(exit_code)

    def _until_stopped(self, batches: Iterable[Batch], rounds: int) -> Iterator[Batch]:
        """Passes batches on; `rounds` is how many batches the process with the most has."""
        iterator = iter(batches)
        for _ in range(rounds):
            self.check_signals()
            batch = next(iterator, None)
            if batch is not None:
                yield batch
