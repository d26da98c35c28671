"""A function of images in several processes, with a progress bar on a terminal."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
from typing import Any, TypeVar

from tqdm import tqdm

from utils import RunError, shortage

Result = TypeVar("Result")


def map_images(function: Callable[[str], Result], paths: Sequence[str], workers: int, unit: str) -> dict[str, Result]:
    """What a function gives for each path; raises RunError if a worker dies or cannot be started."""
    settings: dict[str, Any] = {"total": len(paths), "unit": unit, "disable": None}
    if workers == 1:
        return dict(zip(paths, tqdm(map(function, paths), **settings), strict=True))
    try:
        with ProcessPoolExecutor(min(workers, len(paths) or 1)) as pool:
            return dict(zip(paths, tqdm(pool.map(function, paths, chunksize=16), **settings), strict=True))
    except BrokenProcessPool as error:
        raise RunError("a worker has died, most likely for lack of memory: lower --workers") from error
    except (OSError, RuntimeError, MemoryError) as error:
        if (lacking := str(error) if isinstance(error, RunError) else shortage(error)) is None:
            raise
        for worker in active_children():  # of a pool that could not start all of them: they would wait for ever
            worker.kill()
        raise RunError(lacking.replace("--num-workers", "--workers").replace("--batch-size or ", "")) from error
