"""A trace of some steps of training, for chrome://tracing or Perfetto: --profile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from utils.logging import print0

WARMUP = 2  # steps before the trace begins: the first ones are not like the others


@contextmanager
def profiling(steps: int | None, path: Path) -> Iterator[Callable[[], None]]:
    """Traces `steps` steps after the first two into a file; nothing where `steps` is None.

    Yields:
        A function to be called after each step.
    """
    if steps is None:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print0(profiler.key_averages().table(sort_by=order, row_limit=12))
        print0(f"trace of {steps} steps: {path}")

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=WARMUP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, acc_events=True) as profiler:
        yield profiler.step
