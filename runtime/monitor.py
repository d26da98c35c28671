"""What watches over a run: signals that ask it to end, the watchdog of --timeout, the trace of --profile."""

import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.data import DataLoader

from datasets import BadImage
from engine import Batch
from runtime.loader import read_batches
from runtime.progress import Speed, join_parts, progress
from utils import Interrupted, Processes, largest, print0

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
