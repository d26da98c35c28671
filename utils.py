"""The ground floor: how a run may end early, printing, whole files, seeds and processes."""

import contextlib
import io
import json
import os
import random
import re
import reprlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

# torch is imported where it is used: it takes seconds, which --help and a wrong flag need not wait for.


class UserError(ValueError):
    """A wrong file, entry or flag. The message names it, says what was expected and found, and what to do.

    Exit code 2. Errors travel between processes: a subclass can be made of its message alone.
    """


class RunError(RuntimeError):
    """Something outside the user's input ended the run: a process, a loader's worker, a machine. Exit code 1."""


class Interrupted(BaseException):
    """A signal asked the run to end. No error, so that nothing that catches errors holds it up.

    Attributes:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM and SIGUSR1.
    """

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


MAX_LENGTH = 300  # characters of a name in a message
MAX_NAME = 60  # characters, in a row of names
MAX_NAMES = 10
_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = MAX_NAME
_shortened.maxlist = _shortened.maxtuple = 8
_shortened.maxlevel = 3


# Invisible, and yet part of how words are written (Persian, Hindi, Hebrew, joined emoji); then spaces of other scripts.
_WRITTEN = re.compile("[\u200c-\u200f\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def is_printable(text: str) -> bool:
    """Whether a name stays on one line and shows what it is, in whatever script it is written."""
    return text.isprintable() or _WRITTEN.sub("", text).isprintable()


def printable(value: Any, limit: int = MAX_LENGTH) -> str:
    """A name as it is, quoted and escaped if it would not stay on one line, cut at `limit` characters."""
    text = str(value)
    text = text if is_printable(text) else repr(text[:limit])
    return text if len(text) <= limit else text[:limit] + "..."


_NOT_STORED = re.compile(r"[\ud800-\udfff\r]|\\(?=u(?:005c|000d|d[89a-f][0-9a-f]{2}))")
_STORED = re.compile(r"\\u(005c|000d|d[89a-f][0-9a-f]{2})")


def escaped(text: str) -> str:
    """A text that any program reads as UTF-8, and `unescaped` gives back.

    File names may have bytes that are no UTF-8, which Python holds as lone surrogates: these become \\udc80 to \\udcff.
    """
    return _NOT_STORED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unescaped(text: str) -> str:
    """What `escaped` was given."""
    return _STORED.sub(lambda match: chr(int(match[1], 16)), text)


def escape_output() -> None:
    """Lets this program print any name: what the terminal's encoding lacks is escaped. For the start of a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shown(value: Any) -> str:
    """A value as Python writes it, shortened."""
    try:
        return printable(" ".join(_shortened.repr(value).split()))
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__} of too many digits"


def typed(value: Any) -> str:
    """The type of a value from a file and the value, shortened."""
    return f"{type(value).__name__} {shown(value)}"


def listed(names: Sequence[str]) -> str:
    """Names in a row: the first ten, each shortened, and how many there are if there are more."""
    row = ", ".join(printable(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}...") for name in names[:MAX_NAMES])
    return row if len(names) <= MAX_NAMES else f"{row}, ... ({len(names):,})"


def mistake(path: str | Path, expected: str, found: str, remedy: str) -> UserError:
    """The error for a file that is not as it should be."""
    return UserError(f"{printable(path)}: expected {expected}, found {found}: {remedy}")


@contextmanager
def naming_flags(names: Iterable[str], **flags: str) -> Iterator[None]:
    """A network's ValueError, whose message begins with a parameter's name, becomes an error that names its flag.

    Args:
        names: of parameters whose flags are called like them.
        flags: of other parameters.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        flags = {one: f"--{one.replace('_', '-')}" for one in names} | flags
        if name not in flags:
            raise
        raise UserError(f"{flags[name]} {rest}") from error


SHORTAGES = (  # what errors of the system, of Python and of PyTorch say, and what that tells a user
    (
        re.compile(r"Too many open files|Error 24\b|received 0 items of ancdata"),
        "too many open files: raise the limit (`ulimit -n`) or lower --num-workers",
    ),
    (
        re.compile(
            r"MemoryError|bad_alloc|failed to map segment|not enough memory|"
            r"Cannot allocate memory|can't allocate memory|Unable to allocate \S+ \wi?B|create a memory object"
        ),
        "out of memory: lower --batch-size or --num-workers, or allow the run more",
    ),
    (
        re.compile(r"shared memory|</?torch_\w+>|No space left on device: '/dev/shm"),
        "out of shared memory: enlarge /dev/shm (`docker run --shm-size`) or lower --num-workers",
    ),
    (  # of a semaphore of the loader, or of what is written
        re.compile(r"No space left on device$", re.MULTILINE),
        "no space left in /dev/shm or on the disk that is written to: enlarge the one or make room on the other",
    ),
    (
        re.compile(r"can't start new thread|Resource temporarily unavailable"),
        "no more processes or threads: raise the limit (`ulimit -u`, a container's pids limit) or lower --num-workers",
    ),
)
PROBE_BYTES = 2**29  # more than any picture that is read takes


def shortage(error: BaseException) -> str | None:
    """What the machine lacks and what to do, on one line, if an error says so; else None.

    The error of a loader's worker has the worker's traceback as its message, in which the code is indented.
    """
    if not isinstance(error, OSError | RuntimeError | MemoryError | ImportError):
        return None
    lines = f"{type(error).__name__}: {error}".splitlines()
    text = "\n".join(line for line in lines if not line[:1].isspace())
    for sign, line in SHORTAGES:
        if sign.search(text):
            return line
    return None


def check_shortage(error: BaseException) -> None:
    """Raises RunError if a file could not be read because the machine lacks something, which is not the file's fault.

    Pillow raises MemoryError for a broken file as well, whatever memory there is.
    """
    if (lacking := shortage(error)) is None:
        return
    if isinstance(error, MemoryError):
        with contextlib.suppress(MemoryError):
            bytearray(PROBE_BYTES)
            return
    raise RunError(lacking) from error


def reason(error: BaseException) -> str:
    """Why a file could not be opened or read, on one short line; raises RunError (see `check_shortage`)."""
    check_shortage(error)
    return in_words(error)


def in_words(error: BaseException) -> str:
    """An error as one short line."""
    text = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
    return _line(text.strip())[:200]


def _line(text: str) -> str:
    """A text on one line, with what cannot be printed replaced."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def joined() -> Any:
    """`torch.distributed` once the processes of the run have joined, else None."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_initialized() else None


def is_main_process() -> bool:
    """Whether this is process 0 or the only one."""
    return not (group := joined()) or group.get_rank() == 0


OUTPUT = {"is_read": True}  # whether somebody reads standard output


def leave_output() -> None:
    """Sends what is printed from now on nowhere, as the reader of standard output has closed it."""
    OUTPUT["is_read"] = False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print0(*values: Any) -> None:
    """Prints on process 0 alone. If nobody reads it any more (`... | head`), a run ends as SIGTERM would end it."""
    if not is_main_process():
        return
    try:
        print(*values, flush=True)
    except BrokenPipeError:
        leave_output()
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            raise
        signal.raise_signal(signal.SIGTERM)


def write_json_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes a JSON-lines file whole; raises UserError if it cannot be written."""
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read_json_lines(path: Path) -> list[Any]:
    """The entries of a JSON-lines file up to the first that cannot be read; none if there is no file."""
    entries = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entries.append(json.loads(line))
    except (OSError, ValueError):
        pass  # what follows is not a log that this code wrote
    return entries


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file under a temporary name first, so that it is there whole or not at all."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def write_whole(path: Path, content: "bytes | Callable[[IO[bytes]], Any]") -> None:
    """Writes a file under a temporary name in its folder, flushes it to disk and renames it.

    Args:
        content: or what writes it into an open file.

    Raises:
        UserError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # of a folder that is gone or has become read-only
            temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save makes a RuntimeError of it
        if not isinstance(cause, OSError):
            raise
        raise cannot_write(path, cause) from error


def flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a renamed file is there after a loss of power too."""
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    if not path.parent.is_dir():
        return UserError(f"{path}: cannot be written: its folder is gone; start again with --resume from what is left")
    return UserError(
        f"{path}: cannot be written: {error.strerror}; what was there before still is: make room or check the "
        "permissions, then continue with --resume auto"
    )


def make_writable_folder(folder: Path, flag: str = "--output-dir") -> None:
    """Makes the folder that a flag names; raises UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written: {error.strerror}") from error


def set_aside(path: Path) -> None:
    """Renames a file that an earlier run left, so that a new one begins its own."""
    if path.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        try:
            path.rename(path.with_name(f"{path.stem}.until-{stamp}{path.suffix}"))
        except OSError as error:
            raise cannot_write(path, error) from error


def remove(path: Path) -> None:
    """Removes a file; raises UserError if it cannot be."""
    try:
        path.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def set_seeds(seed: int) -> None:
    """Seeds torch (all devices), numpy's global generator and Python's."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from numpy's global generator)
    random.seed(seed)


def make_deterministic() -> None:
    """Lets torch use only operations that give the same bits each time; to be called before CUDA is used.

    Operations without such a form raise a RuntimeError that names them.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time and changes no result
    torch.backends.cudnn.benchmark = False


# The group for flags and Python objects where the default one is NCCL's, which would take them through the GPU.
CONTROL: dict[str, Any] = {}


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device.

    Attributes:
        store: through which the processes found each other; None if there is one.
    """

    device: "torch.device"
    rank: int = 0
    world_size: int = 1
    store: "dist.Store | None" = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def stop_processes(*, failed: bool = False) -> None:
    """Leaves the process group, if there is one.

    After a failure a GPU may wait for a peer that is gone, and NCCL would wait for the GPU: the process ends at once.
    """
    group = joined()
    if failed and group and group.get_backend() == "nccl":
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    CONTROL.clear()
    if group:
        group.destroy_process_group()


def peer_failure(error: Exception) -> str | None:
    """What an error of a collective tells of the other processes; None for any other error."""
    if not joined():
        return None
    text = str(error)
    gone = ["Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused"]
    gone += ["ncclRemoteError", "NCCL communicator was aborted"]
    if any(sign in text for sign in gone):
        return "another process has ended; it says why"
    if "Timed out waiting" in text or "Watchdog caught collective operation timeout" in text:
        return "another process did not come to where this one waits within --timeout"
    return None


def choose_device(name: str, local_rank: int) -> "torch.device":
    """`auto` takes CUDA, then MPS, then the CPU; a device asked for by name, or `cuda:NUMBER`, must be there."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind, _, number = name.partition(":")
    if not available[kind] or (number and int(number) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: PyTorch finds no such device here; use --device auto or --device cpu")
    if number and local_rank:
        raise UserError(f"--device {name}: expected cuda for several processes, each of which takes its own GPU")
    if number:
        return torch.device(kind, int(number))
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this node has no GPU of its own: {torch.cuda.device_count()} found; "
            "start at most one process a GPU (--nproc_per_node)"
        )
    return torch.device("cuda", local_rank)


def gather(value: Any) -> list[Any]:
    """The value of every process, in their order, on every process."""
    if not (group := joined()):
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value, group=CONTROL.get("group"))
    return values


def largest(number: int) -> int:
    """The largest of the numbers of all processes, on every process; cheap enough for each step."""
    if not (group := joined()):
        return number
    import torch

    largest_number = torch.tensor(number)
    group.all_reduce(largest_number, group.ReduceOp.MAX, group=CONTROL.get("group"))
    return int(largest_number)


@contextmanager
def failing_together() -> Iterator[None]:
    """An expected error of one process inside becomes an error of all, so that none waits for one that has ended."""
    failure = None
    try:
        yield
    except (UserError, RunError, Interrupted) as error:
        failure = error
    for one in filter(None, gather(failure)):
        raise one


def write_checkpoint(paths: Sequence[Path], content: dict[str, Any]) -> None:
    """Writes a checkpoint to each path in turn, each whole or not at all.

    It is serialised once, into the first file, not in memory; the others are copies, which damage to one spares.
    """
    import torch

    def copy(file: IO[bytes]) -> None:
        with paths[0].open("rb") as written:
            shutil.copyfileobj(written, file)

    write_whole(paths[0], partial(torch.save, content))
    for path in paths[1:]:
        write_whole(path, copy)
