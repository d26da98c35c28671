"""Signals that ask a run to end: noted when they come, obeyed between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from errors import Interrupted

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
