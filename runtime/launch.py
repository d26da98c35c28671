"""How the processes of a run are started: what torchrun or SLURM says, where the processes meet, their threads."""

import math
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from utils import CONTROL, Processes, UserError, choose_device


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
    if by_slurm(os.environ) and rank == 0:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        print(f"SLURM: waits at {place} for all {world_size} processes of this step; {ALONE}", file=sys.stderr)
    try:
        store, rank, world_size = next(dist.rendezvous(dist_url, rank, world_size, timeout=patience))
        store = dist.PrefixStore(meet(store, rank, world_size, timeout), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=patience)
        if backend != "gloo":
            CONTROL["group"] = dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:
        source = f"SLURM's step of {world_size} tasks" if by_slurm(os.environ) else f"--dist-url {dist_url}"
        remedy = f"; {ALONE}" if by_slurm(os.environ) else ""
        raise UserError(f"{source}: process {rank} of {world_size} cannot join: {error}{remedy}") from error
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


ALONE = "if only one was started, `unset SLURM_STEP_NUM_TASKS`; to start all, put srun before the command"


def read_environment(environment: MutableMapping[str, str]) -> tuple[int, int, int]:
    """Rank, local rank and number of processes from torchrun's or, in a SLURM step, SLURM's variables."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif by_slurm(environment):
        if in_interactive_shell(environment):
            tasks = environment.pop("SLURM_STEP_NUM_TASKS")  # so that nothing else takes this for one of several
            print(f"SLURM: an interactive shell in a step of {tasks} tasks: one process runs; start {tasks} with srun")
            return 0, 0, 1
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
        environment.setdefault("MASTER_ADDR", first_slurm_node(environment))
        environment.setdefault("MASTER_PORT", str(20000 + integer(environment, "SLURM_JOB_ID", 0) % 20000))
    else:
        return 0, 0, 1
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing and not (environment.get("WORLD_SIZE") == "1"):
        raise UserError(f"the environment variables {', '.join(missing)} are missing: start with torchrun or srun")
    rank, local_rank, world_size = (integer(environment, name, 0) for name in names)
    return rank, local_rank, world_size


def integer(environment: Mapping[str, str], name: str, default: int) -> int:
    """A variable of a launcher as a number; raises UserError."""
    try:
        return int(environment.get(name, default))
    except ValueError as error:
        found = repr(environment[name])
        raise UserError(f"environment variable {name}: expected a number, found {found}: unset it") from error


def by_slurm(environment: Mapping[str, str]) -> bool:
    """Whether SLURM has started this process among several, and torchrun has not.

    A batch script has the job's number of tasks as well, but is one process: only steps of srun count.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return False
    return "SLURM_PROCID" in environment and integer(environment, "SLURM_STEP_NUM_TASKS", 1) > 1


def in_interactive_shell(environment: Mapping[str, str]) -> bool:
    """Whether somebody typed the command in the shell of `srun --pty`, so that no other process of the step runs it.

    Such a shell has a terminal, and gives each command a process group of its own. The step's own task and what a
    script starts are in the group of the task.
    """
    if not hasattr(os, "getpgid") or not (sys.stdin and sys.stdin.isatty()):
        return False
    try:
        return os.getpgid(integer(environment, "SLURM_TASK_PID", -1)) != os.getpgrp()
    except OSError:  # of a task that is not here
        return True


def first_slurm_node(environment: Mapping[str, str]) -> str:
    """The host on which SLURM's process 0 runs; raises UserError."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    if not re.search(r"[\[,]", nodes):
        return nodes
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(f"scontrol cannot name the nodes {nodes}: set MASTER_ADDR to the first of them") from error


def set_threads() -> str:
    """Gives PyTorch the threads that its share of the cores has, unless OMP_NUM_THREADS says how many.

    More threads than cores wait for one another, and a step takes many times as long.

    Returns:
        How many, and why, for the user.
    """
    threads, tasks = torch.get_num_threads(), local_processes(os.environ)
    if given := os.environ.get("OMP_NUM_THREADS"):
        by = f"OMP_NUM_THREADS={given}"
        by += ", which torchrun sets unless it is set" if "TORCHELASTIC_RUN_ID" in os.environ and given == "1" else ""
        return f"{threads} a process ({by})"
    cores = usable_cores()
    own = integer(os.environ, "SLURM_CPUS_PER_TASK", 0) if by_slurm(os.environ) else 0
    share = min(cores, own) if own else max(1, min(cores, threads) // tasks)
    if share < threads:
        torch.set_num_threads(share)
    return f"{torch.get_num_threads()} a process ({tasks} here, {cores} cores; OMP_NUM_THREADS changes it)"


def local_processes(environment: Mapping[str, str]) -> int:
    """How many processes of the run are on this machine."""
    if by_slurm(environment):
        # "2(x3),1": two tasks on each of three nodes, one on the fourth
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment["SLURM_STEP_NUM_TASKS"])
        return max([1, *(int(count) for count in re.findall(r"(?:^|,)(\d+)", tasks))])
    return max(1, integer(environment, "LOCAL_WORLD_SIZE", 1))


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores this process may use: those of its affinity, or fewer if a container has a quota of their time.

    Args:
        root: where `proc` and `sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.floor(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the control groups of either version that this process is in."""
    groups = root / "proc" / "self" / "cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, name = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if "cpu" in controllers.split(","):
            base /= "cpu"
        elif controllers:
            continue
        group = base / name.strip("/")
        for folder in (group, *group.parents):
            try:
                if controllers:
                    words = [
                        (folder / f"cpu.cfs_{part}_us").read_text(encoding="utf-8") for part in ("quota", "period")
                    ]
                else:
                    words = (folder / "cpu.max").read_text(encoding="utf-8").split()
                quota, period = (int(word) for word in words)
            except (OSError, ValueError):  # no limit here
                continue
            if quota > 0 and period > 0:
                yield quota / period
