"""The ground floor: how a run may end early, printing, whole files, seeds and processes."""

import contextlib
import io
import json
import os
import random
import re
import reprlib
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

# torch is imported where it is used: it takes seconds, which --help and a wrong flag need not wait for.


class UserError(ValueError):
    """A wrong file, entry or flag. The message names it, says what was expected and found, and what to do.

    Exit code 2.
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


def printable(value: Any, limit: int = MAX_LENGTH) -> str:
    """A name as it is, quoted and escaped where it would not stay on one line, cut at `limit` characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text[:limit])
    return text if len(text) <= limit else text[:limit] + "..."


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


def reason(error: BaseException) -> str:
    """Why a file could not be opened or read, on one short line."""
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


def print0(*values: Any) -> None:
    """Prints on process 0 alone."""
    if is_main_process():
        print(*values, flush=True)


def write_json_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes a JSON-lines file whole; raises UserError where it cannot be written."""
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read_json_lines(path: Path) -> list[Any]:
    """The entries of a JSON-lines file up to the first that cannot be read; none where there is no file."""
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


def write_whole(path: Path, content: "bytes | memoryview") -> None:
    """Writes a file under a temporary name in its folder, flushes it to disk and renames it.

    Raises:
        UserError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a folder that is gone or has become read-only
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


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
    """Makes the folder that a flag names; raises UserError where it cannot be written."""
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
    """Removes a file; raises UserError where it cannot be."""
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
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time and changes no result
    torch.backends.cudnn.benchmark = False


# The group for flags and Python objects where the default one is NCCL's, which would take them through the GPU.
CONTROL: dict[str, "dist.ProcessGroup"] = {}


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device.

    Attributes:
        store: through which the processes found each other; None where there is one.
    """

    device: "torch.device"
    rank: int = 0
    world_size: int = 1
    store: "dist.Store | None" = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_processes(device: str, dist_url: str = "env://", *, timeout: float = 1800) -> Processes:
    """Finds the device, and joins the processes that torchrun or SLURM started; without them there is one process.

    NCCL joins CUDA processes, Gloo all others; flags and Python objects always travel by Gloo.

    Args:
        timeout: seconds that a collective waits for the slowest process.

    Raises:
        UserError: a device that is not there, or a launcher's environment that is not complete.
    """
    import torch
    import torch.distributed as dist

    rank, local_rank, world_size = read_environment(os.environ)
    chosen = choose_device(device, local_rank)
    if world_size == 1:
        return Processes(chosen)
    backend = "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        backend = "nccl"
    patience = timedelta(seconds=timeout)
    try:
        store, rank, world_size = next(dist.rendezvous(dist_url, rank, world_size, timeout=patience))
        store = dist.PrefixStore(meet(store, rank, world_size, timeout), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=patience)
        if backend != "gloo":
            CONTROL["group"] = dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--dist-url {dist_url}: process {rank} of {world_size} cannot join: {error}") from error
    return Processes(chosen, rank, world_size, store)


def meet(store: "dist.Store", rank: int, world_size: int, timeout: float) -> str:
    """A name that the processes of this start share, and no earlier start had.

    A launcher that starts the processes again (--max-restarts) keeps its store, in which the addresses of those that
    ended still stand. Each process leaves a name of its own; process 0 tells all names until each process has seen its
    own among them.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout
    store.set(f"here/{rank}", own)
    while time.monotonic() < end:
        if rank == 0:
            names = [store.get(f"here/{other}").decode() for other in range(world_size)]
            store.set("here", " ".join(names))
            if all(store.check([f"seen/{own}/{name}"]) for name in names[1:]):
                return own
        elif own in (names := store.get("here").decode().split()):
            store.set(f"seen/{names[0]}/{own}", "")
            return names[0]
        time.sleep(0.02)
    raise ValueError(f"the {world_size} processes did not come together within {timeout:g} s")


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


def peer_failure(error: RuntimeError) -> str | None:
    """What an error of a collective tells of the other processes; None for any other error."""
    if not joined():
        return None
    text = str(error)
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    gone += ("ncclRemoteError", "NCCL communicator was aborted")
    if any(sign in text for sign in gone):
        return "another process has ended; it says why"
    if "Timed out waiting" in text or "Watchdog caught collective operation timeout" in text:
        return "another process did not come to where this one waits within --timeout"
    return None


def read_environment(environment: "os._Environ[str] | dict[str, str]") -> tuple[int, int, int]:
    """Rank, local rank and number of processes from torchrun's or, in a SLURM step, SLURM's variables."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        # A batch script has the job's number of tasks as well, but is one process: only steps of srun count.
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
        environment.setdefault("MASTER_ADDR", first_slurm_node(environment))
        environment.setdefault("MASTER_PORT", str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000))
    else:
        return 0, 0, 1
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing and not (environment.get("WORLD_SIZE") == "1"):
        raise UserError(f"the environment variables {', '.join(missing)} are missing: start with torchrun or srun")
    rank, local_rank, world_size = (int(environment.get(name, "0")) for name in names)
    return rank, local_rank, world_size


def first_slurm_node(environment: "os._Environ[str] | dict[str, str]") -> str:
    """The host on which SLURM's process 0 runs."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    if not re.search(r"[\[,]", nodes):
        return nodes
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return listed.stdout.split()[0]


def choose_device(name: str, local_rank: int) -> "torch.device":
    """`auto` takes CUDA, then MPS, then the CPU; a device asked for by name must be there."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"--device {name}: PyTorch finds no such device here; use --device auto or --device cpu")
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
    for error in filter(None, gather(failure)):
        raise error


def write_checkpoint(paths: Sequence[Path], content: dict[str, Any]) -> None:
    """Writes a checkpoint to each path in turn, each whole or not at all; it is serialised once."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    for path in paths:
        write_whole(path, buffer.getbuffer())
