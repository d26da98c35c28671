"""Runs a row in a process of its own and measures its memory and operations.

The process has done nothing else. It runs the row twice, or once if that takes long. On a CPU the peak is the largest
resident set that Linux notes (VmHWM in /proc/self/status), reset before the run (5 to /proc/self/clear_refs). glibc is
told to give back freed memory (mallopt); otherwise the peak would show its reserves. On CUDA the peak is the
allocator's. The processes are forked from one that has imported everything and computed nothing, so that all start
alike. Allocations beyond the limit fail (RLIMIT_DATA, on CUDA the allocator's fraction): then the row does not fit.
"""

import ctypes
import math
import multiprocessing
import os
import re
import resource
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.setup import M_MMAP_THRESHOLD
from tools.benchmark.measure import ATTENTION_FLOPS, GIB, summarize, timed
from tools.benchmark.rows import Setting, build_network, build_step

LONG_SECONDS = 20  # a step that takes longer is run once for its memory
LONGEST_SECONDS = 3600.0  # a row that takes longer is killed


def alone(row: str, setting: Setting, *, threads: int, limit: float, rounds: int = 0) -> dict[str, Any]:
    """Runs a row in a process of its own: its memory, its operations and, unless `rounds` is 0, its time.

    The process ends with this one, even if this one is killed.

    Args:
        limit: bytes that the process may have, on CUDA its allocator.

    Returns:
        `peak_bytes` (on a CPU of the whole process), `network_bytes` (without the interpreter and libraries),
        `weight_bytes`, `flops` of one run and `seconds`; or `refused`, why the row does not fit.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.benchmark.memory"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_measured, args=(sender, row, setting, threads, limit, rounds))
    try:
        process.start()
        sender.close()
        if not receiver.poll(LONGEST_SECONDS):
            return {"refused": f"it was killed after {LONGEST_SECONDS:,.0f} s"}
        measured = receiver.recv()
    except EOFError:
        return {"refused": f"the system ended the process; its limit was {limit / GIB:.1f} GiB"}
    finally:
        process.kill()
        process.join()
    if isinstance(measured, Exception):
        raise measured
    return measured


def send_measured(sender: Connection, *arguments: Any) -> None:
    """`measure` in the row's process; sends its result, or the error that ended it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        sender.send(measure(*arguments))
    except Exception as error:
        error.add_note(traceback.format_exc())
        sender.send(error)


def end_with_parent() -> None:
    """Waits until the benchmark has ended, even if it was killed, and ends this process."""
    multiprocessing.parent_process().join()
    os._exit(1)


def measure(row: str, setting: Setting, threads: int, limit: float, rounds: int) -> dict[str, Any]:
    """`alone`, in this process."""
    torch.set_num_threads(threads)
    memory = CudaMemory(limit) if setting.device == "cuda" else ProcessMemory(limit)
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
    try:
        step = build_step(row, setting)
        memory.reset()
        began = time.perf_counter()
        with nullcontext() if uncountable(row, setting) else counter:
            step()
        if time.perf_counter() - began < LONG_SECONDS:
            memory.reset()
            step()
        measured = memory.peak() | {"flops": counter.get_total_flops() or None}
        with torch.device("meta"):
            parameters = build_network(row, setting)[0].parameters()
        measured["weight_bytes"] = sum(parameter.nbytes for parameter in parameters)
        if rounds:
            measured["seconds"] = summarize([timed(step, setting.device) for _ in range(rounds)])
            measured["timed"] = "alone"
        return measured
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not re.search("memory|alloc", str(error)):
            raise
        asked = re.search(r"allocate (\d+ bytes|[\d.]+ [KMGT]iB)", str(error))
        what = asked.group(1) if asked else "memory"
        if what.endswith("bytes"):
            what = f"{int(what.split()[0]) / GIB:.1f} GiB"
        return {"refused": f"{what} more was refused within a limit of {limit / GIB:.1f} GiB"}


def uncountable(row: str, setting: Setting) -> bool:
    """Whether the flop counter is wrong: on a compiled graph's kernels, and on the gradient of grouped convolutions."""
    return row.endswith("compiled") or (row == "pvt_v2_b2" and setting.mode == "training")


def process_memory() -> dict[str, int]:
    """Bytes of the memory lines in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


class ProcessMemory:
    """The resident set of this process, limited through its data segment. Linux only."""

    def __init__(self, limit: float):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)  # freed memory leaves the resident set at once
        status = process_memory()
        self.before = status["VmRSS"]
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (int(status["VmData"] + max(limit - self.before, 0)), hard))

    def reset(self) -> None:
        """Forgets the peak so far."""
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> dict[str, int]:
        """The peak since `reset`, and the network's part of it."""
        peak = process_memory()["VmHWM"]
        return {"peak_bytes": peak, "network_bytes": peak - self.before}


class CudaMemory:
    """The CUDA allocator's memory, limited to a share of the device."""

    def __init__(self, limit: float):
        total = torch.cuda.get_device_properties(0).total_memory
        if limit < total:
            torch.cuda.set_per_process_memory_fraction(limit / total)

    def reset(self) -> None:
        """Forgets the peak so far."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, int]:
        """The peak since `reset`, all of it the network's."""
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return {"peak_bytes": peak, "network_bytes": peak}


def largest_batch(row: str, setting: Setting, *, threads: int, limit: float) -> int:
    """The largest batch size at which the row fits, to within a sixteenth; 0 if one image does not fit."""

    def peak(batch_size: int) -> int | None:
        return alone(row, replace(setting, batch_size=batch_size), threads=threads, limit=limit).get("peak_bytes")

    return find_largest(peak, limit)


def find_largest(peak: Callable[[int], int | None], limit: float) -> int:
    """The largest number from 1 on that fits, to within a sixteenth; 0 if 1 does not.

    Every image takes about as much memory, so the next try is where the last two reach the limit.

    Args:
        peak: bytes of a number of images, None if they do not fit.
    """
    works, used, growth, fails, number = 0, 0, 1.0, math.inf, 1
    while True:
        found = peak(number)
        if found is None:
            fails = number
        else:
            growth = max((found - used) / (number - works), 1.0)
            works, used = number, found
        step = max(1, works // 16)
        if fails - works <= step:
            return works
        reached = max(works + int((limit - used) / growth), works + step)
        number = min(reached, 16 * works) if reached < fails else (works + int(fails)) // 2


def memory_limit(device: str) -> float:
    """Bytes that may be used: nine tenths of the free memory on a CPU, the device's whole memory on CUDA."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return 0.9 * int(line.split()[1]) * 1024
