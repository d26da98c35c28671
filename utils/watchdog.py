"""A run that hangs ends, and says where: --timeout."""

import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch.distributed as dist

Item = TypeVar("Item")


class Watchdog:
    """While this context is open, ends the process with exit code 1 once nothing has moved for `timeout` seconds.

    It says where this process stands (its position and the stack of each thread) and, with several processes, which of
    the others no longer answers, as a stopped process or a lost machine would. A collective waits for the slowest
    process, so that all of them stop moving when one hangs: each tells its own place.

    Args:
        timeout: seconds.
        store: of the process group, through which the processes see each other; None where there is one process.
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

    def watched(self, items: Iterable[Item], title: str, *, start: int = 0) -> Iterator[Item]:
        """Passes the batches on, with a beat before and after each is fetched; they count from `start`."""
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
