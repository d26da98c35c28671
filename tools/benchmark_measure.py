"""How the benchmark measures: time side by side, memory and operations each in a process of its own.

Time: all rows in one process, in turns, so that a change of the machine's speed meets all alike.

Memory: a process that has done nothing else runs the row twice, or once if that takes long. On a CPU the peak is what
Linux notes as the largest resident set (VmHWM in /proc/self/status), set back (5 to /proc/self/clear_refs) before the
run; glibc is told to give back what was freed (mallopt), else the peak shows its reserves. On CUDA it is the
allocator's peak. The processes are forked from one that has imported everything and computed
nothing, so that all start alike. A limit makes allocations fail (RLIMIT_DATA, on CUDA the allocator's fraction): the
row does not fit then.
"""

import ctypes
import multiprocessing
import platform
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from runtime.setup import M_MMAP_THRESHOLD
from tools.benchmark_rows import Setting, Step, build_network, build_step

GIB = 2**30
LONG_SECONDS = 20  # a step that takes longer is run once for its memory
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product gives the device's rate


def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Operations of one attention, by the shapes of queries, keys and values."""
    return sdpa_flop_count(q, k, v)


def attention_backward_flops(gradient: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *args, **kwargs) -> int:
    """Operations of its gradient."""
    return sdpa_backward_flop_count(gradient, q, k, v)


ATTENTION_FLOPS = {  # the flop counter does not know the CPU's kernels
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def interleave(steps: dict[str, Step], device: str, *, rounds: int, row_seconds: float) -> dict[str, dict[str, float]]:
    """Seconds of each row: median, quartiles and number of rounds, after one round that is not counted.

    A row that has been run for `row_seconds` rests; if the uncounted run alone takes as long, it is counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            if sum(seconds[name]) > row_seconds:
                continue
            taken = timed(step, device)
            if number or taken > row_seconds:
                seconds[name].append(taken)
    return {name: summarize(values) for name, values in seconds.items()}


def timed(step: Step, device: str) -> float:
    """Seconds of one run."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    began = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - began


def summarize(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles and number."""
    values = torch.tensor(seconds, dtype=torch.float64)
    quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return dict(zip(("lower", "median", "upper"), quartiles, strict=True)) | {"rounds": len(seconds)}


def alone(row: str, setting: Setting, *, threads: int, limit: float, rounds: int = 0) -> dict[str, Any]:
    """Runs a row in a process of its own: memory, operations and, where `rounds` is not 0, its time.

    Args:
        limit: bytes that the process, on CUDA the allocator, may have.

    Returns:
        `peak_bytes` (on a CPU of the whole process), `network_bytes` (what came on top of the libraries: weights,
        optimizer, activations), `weight_bytes`, `flops` of one run and `seconds`; or `refused`, how it was found not
        to fit.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.benchmark_measure"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure_here, row, setting, threads, limit, rounds).result()
        except BrokenProcessPool:
            return {"refused": f"the system ended the process; its limit was {limit / GIB:.1f} GiB"}


def measure_here(row: str, setting: Setting, threads: int, limit: float, rounds: int) -> dict[str, Any]:
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
        found = memory.found() | {"weight_bytes": weight_bytes(row, setting)}
        found["flops"] = counter.get_total_flops() or None
        if rounds:
            found["seconds"] = summarize([timed(step, setting.device) for _ in range(rounds)])
            found["timed"] = "alone"
        return found
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not re.search("memory|alloc", str(error)):
            raise
        asked = re.search(r"allocate (\d+ bytes|[\d.]+ [KMGT]iB)", str(error))
        what = readable(asked.group(1)) if asked else "memory"
        return {"refused": f"{what} more was refused within a limit of {limit / GIB:.1f} GiB"}


def weight_bytes(row: str, setting: Setting) -> int:
    """Bytes of the network's parameters."""
    with torch.device("meta"):
        return sum(parameter.nbytes for parameter in build_network(row, setting).parameters())


def uncountable(row: str, setting: Setting) -> bool:
    """Whether the flop counter is wrong: on a compiled graph's kernels, and on the gradient of grouped convolutions."""
    return row.endswith("compiled") or (row == "pvt_v2_b2" and setting.mode == "training")


def readable(amount: str) -> str:
    """`N bytes` in GiB; what is in another unit stays."""
    number, unit = amount.split()
    return f"{int(number) / GIB:.1f} GiB" if unit == "bytes" else amount


class ProcessMemory:
    """The resident set of this process, limited through its data segment; Linux alone."""

    def __init__(self, limit: float):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)  # what is freed leaves the resident set at once
        status = self.status()
        self.before = status["VmRSS"]
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (int(status["VmData"] + max(limit - self.before, 0)), hard))

    def status(self) -> dict[str, int]:
        """Bytes of the memory lines in /proc/self/status."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}

    def reset(self) -> None:
        """Forgets the peak so far."""
        Path("/proc/self/clear_refs").write_text("5")

    def found(self) -> dict[str, int]:
        """The peak since `reset`, and what of it is the network's."""
        peak = self.status()["VmHWM"]
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

    def found(self) -> dict[str, int]:
        """The peak since `reset`: all of it is the network's."""
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return {"peak_bytes": peak, "network_bytes": peak}


def largest_batch(row: str, setting: Setting, *, threads: int, limit: float) -> int:
    """The largest batch size at which the row fits, by doubling and bisecting; 0 where one image does not."""

    def fits(batch_size: int) -> bool:
        found = alone(row, replace(setting, batch_size=batch_size), threads=threads, limit=limit)
        return "refused" not in found

    return bisect_largest(fits)


def bisect_largest(fits: Callable[[int], bool]) -> int:
    """The largest number from 1 on that fits, where all below it do; 0 where 1 does not."""
    works, fails = 0, 1
    while fits(fails):
        works, fails = fails, 2 * fails
    while fails - works > 1:
        middle = (works + fails) // 2
        if fits(middle):
            works = middle
        else:
            fails = middle
    return works


def memory_limit(device: str) -> float:
    """Bytes that may be used: nine tenths of what is free on a CPU, the device's whole memory on CUDA."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return 0.9 * int(line.split()[1]) * 1024


def matrix_rate(device: str, dtype: str) -> float:
    """Operations a second of a product of two large square matrices, the median of seven."""
    side = MATRIX_SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    seconds = summarize([timed(lambda: a @ b, device) for _ in range(9)][2:])
    return 2 * side**3 / seconds["median"]


def attention_backend(device: str, dtype: str) -> str:
    """Which kernel `F.scaled_dot_product_attention` chooses for stage 1, by PyTorch's own (unofficial) answer."""
    q, k = (torch.zeros(1, 1, length, 64, device=device, dtype=getattr(torch, dtype)) for length in (3137, 50))
    return SDPBackend(torch._fused_sdp_choice(q, k, k)).name.lower()


def machine(device: str) -> dict[str, Any]:
    """What is measured where and when."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
