"""The loader of batches: its worker processes, their end, and the way of a reader's error out of them."""

import atexit
import copy
import ctypes
import multiprocessing
import multiprocessing.queues
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from datasets import Draw, Item, ItemsRead
from utils import SHORTAGES, RunError, UserError, shortage

# Windows has no SIGUSR1, and cannot block a signal.
IGNORED_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
WORKER_DEATH = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) "
    r"(?:is killed by signal: (?P<signal>[^.]+)\.|exited unexpectedly(?: with exit code (?P<code>\d+))?)"
)

OUT_OF_MEMORY = "most often for lack of memory: lower --num-workers or --batch-size"
REMEDIES = {  # by the name of the signal; without one PyTorch has only noticed that the worker is gone
    None: OUT_OF_MEMORY,
    "Killed": OUT_OF_MEMORY,
    "Bus error": "most often for lack of shared memory: enlarge /dev/shm or lower --num-workers",
}

SHORTAGE_CODES = {100 + number: line for number, (_, line) in enumerate(SHORTAGES)}  # exit codes of workers

FILES_FOR_A_BATCH = 16  # two for each tensor, one for the connection, and some to spare
DEATH_NOTICE_SECONDS = 5
START_SECONDS = (10, 30, 90)  # that a worker has to come to life, at each try
Batch = dict[str, Any]


def build_loader(
    dataset: Dataset,
    *,
    sampler: Sampler[int] | None = None,
    batch_sampler: Sampler[list[int]] | Sampler[list[Draw]] | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
    prefetch_factor: int = 2,
) -> DataLoader:
    """A loader to be read through `read_batches`; in order if there is no sampler.

    Workers stay from one epoch to the next and use one thread each. They ignore the signals SIGINT, SIGTERM and
    SIGUSR1, which a terminal or a scheduler sends to every process of a run: the main process ends them.

    Args:
        sampler, batch_size, drop_last: single indices to be put into batches; or
        batch_sampler: whole batches of indices or draws.
        seed: of this process; the seeds of its workers derive from it. A `Draw` brings its own.
        prefetch_factor: how many batches each worker reads ahead.
    """
    if batch_sampler is not None:
        batching: dict[str, Any] = {"batch_sampler": batch_sampler}
    else:
        batching = {"sampler": sampler, "batch_size": batch_size or 1, "drop_last": drop_last}
    return DataLoader(
        dataset,
        **batching,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
        **(_worker_settings(prefetch_factor) if num_workers > 0 else {}),
    )


def read_batches(loader: Iterable[Batch | UserError | RunError]) -> Iterator[Batch]:
    """The batches of a loader: dicts of tensors with the batch in front, and `skipped`, a list of `BadImage`.

    A batch of which no image could be read has `skipped` alone. An exception that leaves a worker arrives wrapped,
    with the worker's traceback as its message. A worker therefore sends a reader's error as a value in the place of
    its batch, and here, in the main process, it is raised.

    Raises:
        UserError: an image of the batch could not be read.
        RunError: a worker has died, or the machine lacks something. Where a death is noticed while the caller works
            on a batch, PyTorch raises a RuntimeError there, which `worker_death` explains.
    """
    end = None
    try:
        for batch in _with_deaths(loader):
            if isinstance(batch, UserError | RunError):
                # A copy: raising `batch` itself would tie it to this frame, and so the workers' end, seconds long,
                # to the garbage collector.
                raise copy.copy(batch)
            yield batch
    except RunError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        workers = getattr(getattr(loader, "_iterator", None), "_workers", ())
        told = [SHORTAGE_CODES[worker.exitcode] for worker in workers if worker.exitcode in SHORTAGE_CODES]
        end = told[0] if told else worker_death(error) or shortage(error)
        if end is None:
            raise
        _end_half_started(error)
    if end is not None:  # raised here, as the error would tie its frames to this one
        raise RunError(end)


def _end_half_started(error: BaseException) -> None:
    """Ends the workers of a loader that could not start all of them: PyTorch would fail to, and print why."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        loading = frame.f_locals.get("self")
        if isinstance(loading, _BaseDataLoaderIter) and not hasattr(loading, "_workers_status"):
            vars(loading)["_shutdown"] = True
            for worker in getattr(loading, "_workers", []):
                worker.kill()


def _with_deaths(loader: Iterable[Batch | UserError | RunError]) -> Iterator[Batch | UserError | RunError]:
    """What a loader yields; if a worker's end cuts a batch off, the error is the one that `worker_death` explains.

    The main process fetches a batch's memory from its worker. It may find the connection cut a moment before the
    kernel tells it of the worker's end, upon which PyTorch's handler of SIGCHLD raises its error, here.
    """
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError):
        time.sleep(DEATH_NOTICE_SECONDS)
        raise


def worker_death(error: BaseException) -> str | None:
    """Says on one line which loader worker has died and of what, or None for an error of another kind.

    PyTorch raises this error from the loader, or from its handler of SIGCHLD anywhere in the main thread.
    """
    match = WORKER_DEATH.match(str(error))
    if match is None:
        return None
    worker = f"data loader worker (process {match['pid']})"
    if int(match["code"] or 0) in SHORTAGE_CODES:
        return SHORTAGE_CODES[int(match["code"])]
    if match["code"]:
        return f"{worker} ended with exit code {match['code']}: --num-workers 0 shows why"
    by = f"was killed by signal {match['signal']}" if match["signal"] else "ended without saying why"
    return f"{worker} {by}, {REMEDIES.get(match['signal'], '--num-workers 0 may show why')}"


def _collate(read: ItemsRead | list[Item] | UserError) -> Batch | UserError:
    """A batch of the items read, or the error that came in their place."""
    if isinstance(read, UserError):
        return read
    if get_worker_info() is not None:
        _check_room_for_files()
    items, bad_images = read if isinstance(read, ItemsRead) else (read, [])
    return {**(default_collate(items) if items else {}), "skipped": bad_images}


def _check_room_for_files() -> None:
    """Raises OSError if a worker cannot open the files through which the main process fetches a batch.

    The thread that hands them over would otherwise print an error again and again, and the main process would wait.
    """
    files = []
    try:
        for _ in range(FILES_FOR_A_BATCH):
            files.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for file in files:
            os.close(file)


class _Worker(multiprocessing.Process):
    """A worker process, which leaves the signals that end a run to the main process."""

    start_pipe: tuple[Connection, ...] = ()  # closed as soon as the process runs

    def start(self) -> None:
        """Starts the worker; it inherits the signals as blocked, so that none meets it unprepared."""
        if not hasattr(signal, "pthread_sigmask"):
            super().start()
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def _Popen(worker: "_Worker") -> Any:
        """Starts the worker's process, and where it is forked, another one in its place if it does not come to life.

        A thread of Gloo enters Python for a moment after a collective, to release its tensors. A process that Python
        3.11 forks in that moment waits for the thread, which it does not have, for ever.
        """
        start: Any = multiprocessing.Process._Popen  # type: ignore[attr-defined]  # as Process.start calls it
        if multiprocessing.get_start_method() != "fork":
            return start(worker)
        for seconds in START_SECONDS:
            worker.start_pipe = receiver, sender = multiprocessing.Pipe(duplex=False)
            with receiver:
                with sender:
                    process = start(worker)
                if receiver.poll(seconds):  # the worker has closed its end, or is dead
                    return process
            process.kill()
            process.wait()
            print(f"a data loader worker did not start within {seconds} s: another is started", file=sys.stderr)
        return start(worker)  # --timeout ends the run if this one does not start either

    def run(self) -> None:
        """Reads batches; a worker that cannot even start to, as the machine lacks something, says so by its code."""
        for end in self.start_pipe:
            end.close()
        try:
            super().run()
        except Exception as error:
            for code, line in SHORTAGE_CODES.items():
                if shortage(error) == line:
                    os._exit(code)
            raise

    def terminate(self) -> None:
        """Ends a worker that did not end when asked to: by SIGKILL, as SIGTERM does not reach it."""
        self.kill()


class _Results(multiprocessing.queues.Queue):
    """A queue of a loader that sends an error in the place of a batch that it cannot send.

    The thread that sends would print the error and drop the batch, for which the main process would wait for ever.
    """

    def _on_queue_feeder_error(self, error: Exception, sent: Any) -> None:
        if isinstance(sent, tuple):  # a batch's number and the batch
            found = f"a batch that cannot be sent ({type(error).__name__}: {error}): --num-workers 0 may show why"
            self.put((sent[0], RunError(shortage(error) or f"data loader worker: {found}")))
        else:
            super()._on_queue_feeder_error(error, sent)  # type: ignore[misc]  # not in its declared interface


class _Flag:
    """A loader's sign to its workers that it ends, without the lock of multiprocessing's Event.

    A worker that is killed while it asks an Event for its state keeps the lock, and the main process, which sets the
    Event at its end, would wait for it for ever.
    """

    def __init__(self):
        self._value = multiprocessing.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return self._value.value


def _worker_settings(prefetch_factor: int) -> dict[str, Any]:
    """Settings of a loader that has workers."""
    context: Any = copy.copy(multiprocessing.get_context())
    context.Process = _Worker
    context.Event = _Flag
    context.Queue = lambda maxsize=0: _Results(maxsize, ctx=context.get_context())
    return {
        "multiprocessing_context": context,
        "prefetch_factor": prefetch_factor,
        "persistent_workers": True,
    }


@atexit.register
def _end_workers() -> None:
    """Ends the workers that are left when the program ends.

    multiprocessing would send them SIGTERM, which they ignore, and wait for them.
    """
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report their deaths
    for worker in workers:
        worker.kill()
