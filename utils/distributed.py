"""Starting, joining and ending the processes of a run, and the few collectives that it needs."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_processes(device: str, dist_url: str = "env://") -> Processes:
    """Finds the device, and joins the processes that torchrun or SLURM started; without them there is one process.

    NCCL joins CUDA processes, Gloo all others.

    Raises:
        UserError: a device that is not there, or a launcher's environment that is not complete.
    """
    rank, local_rank, world_size = read_environment(os.environ)
    chosen = choose_device(device, local_rank)
    if world_size > 1:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, init_method=dist_url, rank=rank, world_size=world_size)
        except (dist.DistError, ValueError) as error:
            raise UserError(f"--dist-url {dist_url}: process {rank} of {world_size} cannot join: {error}") from error
    return Processes(chosen, rank, world_size)


def stop_processes() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def peer_has_ended(error: RuntimeError) -> bool:
    """Whether an error of a collective only tells that another process of the run is gone."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return dist.is_initialized() and any(sign in str(error) for sign in signs)


def read_environment(environment: "os._Environ[str] | dict[str, str]") -> tuple[int, int, int]:
    """Rank, local rank and number of processes from torchrun's or, in a SLURM step, SLURM's variables."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
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
    dist.all_gather_object(values, value)
    return values


@contextmanager
def failing_together() -> Iterator[None]:
    """A UserError of one process inside becomes a UserError of all, so that none waits for one that has ended."""
    failure = None
    try:
        yield
    except UserError as error:
        failure = str(error)
    failures = [message for message in gather(failure) if message is not None]
    if failures:
        raise UserError(failures[0])
