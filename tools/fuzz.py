"""Reads hostile files by the thousand: each must end in a result or in an error of one line, soon and in little memory.

    python tools/fuzz.py images --count 20000 --seed 0       # annotations, images, config or checkpoints
    python tools/fuzz.py images --count 1 --first 123         # case 123 of seed 0 alone

Case `number` of a reader and a seed is always the same. The cases run in a process of their own, so that one which
ends it, or is not done in time, is found as well; the files of a case that fails are kept in --failures.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/fuzz.py` finds the project's modules

import torch

from tests.fuzzing import make_case, read_case, readers

TIME_LIMIT = 20  # seconds a case
ADDRESS_SPACE = 6 * 2**30  # bytes beyond what the process has at its start
MEMORY_LIMIT = 2 * 2**30  # bytes that a case may add to the largest memory used so far


def work(connection: Connection, name: str, seed: int, numbers: range) -> None:
    """Runs cases and sends the outcome of each: "result", "UserError", or what went wrong."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # image libraries print their remarks on files there
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, used + ADDRESS_SPACE))
    for number in numbers:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with tempfile.TemporaryDirectory() as folder:
            make_case(name, seed, number, Path(folder))
            try:
                outcome = read_case(name, Path(folder))
            except Exception as error:  # any at all is a finding
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome = f"{type(error).__name__} at {place.filename}:{place.lineno}: {str(error)[:300]}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        connection.send(f"{grown:,} bytes of memory" if grown > MEMORY_LIMIT else outcome)


def run(name: str, seed: int, numbers: range, failures: Path) -> Counter[str]:
    """Counts the outcomes of the cases; writes the files of those that failed."""
    outcomes: Counter[str] = Counter()
    context = multiprocessing.get_context("fork")
    while numbers:
        connection, end = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(end, name, seed, numbers))
        worker.start()
        end.close()
        while numbers:
            outcome = receive(connection, worker)
            number, numbers = numbers[0], numbers[1:]
            outcomes[outcome if outcome in ("result", "UserError") else "failure"] += 1
            if outcome not in ("result", "UserError"):
                folder = failures / f"{name}-{seed}-{number}"
                folder.mkdir(parents=True, exist_ok=True)
                if not any(folder.iterdir()):
                    make_case(name, seed, number, folder)
                print(f"case {number}: {outcome}; its files are in {folder}", flush=True)
            if not worker.is_alive() and not connection.poll():
                break
        worker.kill()
        worker.join()
    return outcomes


def receive(connection: Connection, worker: multiprocessing.Process) -> str:
    """The outcome of the next case; of one that hangs or ends the process, that it does."""
    try:
        if connection.poll(TIME_LIMIT):
            return connection.recv()
    except EOFError:
        worker.join()
        return f"the process ended with code {worker.exitcode}"
    worker.kill()
    worker.join()
    return f"not done in {TIME_LIMIT} s"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=list(readers()))
    parser.add_argument("--count", type=int, default=20_000, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for the files that fail")
    options = parser.parse_args(argv)
    start = time.monotonic()
    numbers = range(options.first, options.first + options.count)
    outcomes = run(options.reader, options.seed, numbers, options.failures)
    print(
        f"{options.reader}, seed {options.seed}: {sum(outcomes.values()):,} cases, {outcomes['result']:,} results, "
        f"{outcomes['UserError']:,} UserErrors, {outcomes['failure']:,} failures, {time.monotonic() - start:.0f} s"
    )
    return 1 if outcomes["failure"] else 0


if __name__ == "__main__":
    sys.exit(main())
