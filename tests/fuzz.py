"""Reads hostile files by the thousand: each must end in a result or in an error of one line, soon and in little memory.

    python -m tests.fuzz images --count 20000 --seed 0       # or annotations, own-data, tables, config, ...
    python -m tests.fuzz images --count 1 --first 123         # case 123 of seed 0 alone

Case `number` of a reader and a seed is always the same. The cases run in a process of their own, so that one which
ends it, or is not done in time, is found as well; the files of a case that fails are kept in --failures.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tests.fuzzing import make_case, read_case, readers

TIME_LIMIT = 20  # seconds a case

ADDRESS_SPACE = 6 * 2**30  # bytes beyond what the process has at its start

IN_MEMORY = "/dev/shm"  # for the files of a case: on a disk, writing them takes most of the time

MEMORY_LIMIT = 2 * 2**30  # bytes that a case may add to the largest memory used so far


def case_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder for the files of a case, in memory where that can be."""
    return tempfile.TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None)


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
        with case_folder() as folder:
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
    while numbers:
        for outcome in outcomes_of_worker(name, seed, numbers):
            number, numbers = numbers[0], numbers[1:]
            kind = outcome if outcome in ("result", "UserError") else "failure"
            outcomes[kind] += 1
            if kind == "failure":
                folder = failures / f"{name}-{seed}-{number}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                make_case(name, seed, number, folder)
                print(f"case {number}: {outcome}; its files are in {folder}", flush=True)
    return outcomes


def outcomes_of_worker(name: str, seed: int, numbers: range) -> Iterator[str]:
    """The outcomes of the cases in their order, up to and with the first that hangs or ends the process."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    worker = context.Process(target=work, args=(sending, name, seed, numbers))
    worker.start()
    sending.close()
    try:
        for _ in numbers:
            if not receiving.poll(TIME_LIMIT):
                yield f"not done in {TIME_LIMIT} s"
                return
            yield receiving.recv()
    except EOFError:
        worker.join()
        yield f"the process ended with code {worker.exitcode}"
    finally:
        worker.kill()
        worker.join()


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
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{options.reader}, seed {options.seed}: {sum(outcomes.values()):,} cases, {outcomes['result']:,} results, "
        f"{outcomes['UserError']:,} UserErrors, {outcomes['failure']:,} failures, {time.monotonic() - start:.0f} s, "
        f"of which {used.ru_utime + used.ru_stime:.0f} s of processor time"
    )
    return 1 if outcomes["failure"] else 0


if __name__ == "__main__":
    sys.exit(main())
