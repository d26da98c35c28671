"""Starting, joining and ending the processes of a run, and the few collectives that it needs."""

import os
import re
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from errors import Interrupted, RunError, UserError

# The group for flags and Python objects where the default one is NCCL's, which would take them through the GPU.
CONTROL: dict[str, dist.ProcessGroup] = {}


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device.

    Attributes:
        store: through which the processes found each other; None where there is one.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    store: dist.Store | None = None

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


def meet(store: dist.Store, rank: int, world_size: int, timeout: float) -> str:
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
    if failed and dist.is_initialized() and dist.get_backend() == "nccl":
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    CONTROL.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def peer_failure(error: RuntimeError) -> str | None:
    """What an error of a collective tells of the other processes; None for any other error."""
    if not dist.is_initialized():
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


def choose_device(name: str, local_rank: int) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; a device asked for by name must be there."""
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
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=CONTROL.get("group"))
    return values


def largest(number: int) -> int:
    """The largest of the numbers of all processes, on every process; cheap enough for each step."""
    if not dist.is_initialized():
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=CONTROL.get("group"))
    return int(found)


@contextmanager
def failing_together() -> Iterator[None]:
    """An expected error of one process inside becomes an error of all, so that none waits for one that has ended."""
    failure = None
    try:
        yield
    except (UserError, RunError, Interrupted) as error:
        failure = (type(error), error.args)
    for kind, arguments in filter(None, gather(failure)):
        raise kind(*arguments)
