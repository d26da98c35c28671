"""Runs that are really killed, and the comparison of what they leave with an undisturbed run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from tests.conftest import ROOT, SMALL, free_port

# Every source of randomness is on: dropout, stochastic depth, Mixup, RandAugment, erasing.
TRAINING = [
    *SMALL,
    *"--drop 0.1 --mixup 0.4 --reprob 0.2 --checkpoint-steps 2 --log-every 1 --protocol val --model-ema".split(),
    *"--timeout 120".split(),  # less than a test waits, so that a run that hangs says where
]
STEPS_AN_EPOCH = {1: 6, 2: 3}  # 24 images, batch 4, by processes


class Run:
    """A command in a process group of its own, whose output is read as it comes."""

    def __init__(self, *command, env=None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **(env or {})}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="backslashreplace",  # a killed process may end within a character
            bufsize=1,
            start_new_session=True,
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self):
        return "".join(self.lines)

    def wait_for(self, found, timeout=120):
        """Waits until `found(self)` is true (a text: until it was printed); fails where the command ends before."""
        ready = found if callable(found) else lambda run: found in run.output
        end = time.monotonic() + timeout
        while not ready(self):
            assert self.process.poll() is None, f"ended before {found}:\n{self.output}"
            assert time.monotonic() < end, f"{found} did not come:\n{self.output}"
            time.sleep(0.0005)

    def signal_all(self, number):
        """Sends a signal to the command and everything that it started, as a scheduler does."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def finish(self, timeout=240):
        """Waits for the end; returns the exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            raise AssertionError(f"did not end:\n{self.output}") from None
        self.reader.join(5)
        return code

    def family(self):
        """Ids of the command's process and of all below it, parents first; a launcher's have sessions of their own."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # one that has just ended
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += sorted(child for child, parent in parents.items() if parent == pid)
        return found


def command(processes, script="main_V.py", *launcher_arguments):
    """The command line up to the script's own arguments."""
    if processes == 1 and not launcher_arguments:
        return [sys.executable, script]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    port = [] if launcher_arguments else [f"--master_port={free_port()}"]
    return [sys.executable, *launcher, *port, *launcher_arguments, script]


def training(folder, data, *arguments, processes=1, workers=0, script="main_V.py", env=None):
    """Starts a training that takes up what it finds in the folder."""
    given = [*TRAINING, "--data-path", data, "--output_dir", folder, "--resume", "auto", "--num_workers", workers]
    return Run(*command(processes, script), *given, *arguments, env=env)


def complete(folder, data, *arguments, **settings):
    """Runs a training to its end; returns its output."""
    run = training(folder, data, *arguments, **settings)
    assert run.finish() == 0, run.output
    return run.output


def assert_same_result(folder, expected):
    """Weights, optimizer, random states, log, figures and predictions are the same, to the bit."""
    names = sorted(path.name for path in expected.iterdir() if path.suffix != ".json")
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".json") == names
    for name in names:
        if name.endswith(".pth"):
            assert_same(load(folder / name), load(expected / name), name)
        elif name.endswith(".csv"):
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert read_log(folder) == read_log(expected)
    results = [json.loads((place / "checkpoint_v_best_test.json").read_text()) for place in (folder, expected)]
    for result in results:
        del result["run"]
    assert results[0] == results[1]


CLOCKS = {"train_seconds", "images_per_second", "data_wait_share"}  # what differs between any two runs


def read_log(folder):
    """The entries of the log without what a clock says."""
    entries = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in CLOCKS} for entry in entries]


def load(path):
    """A checkpoint without what differs between any two runs: folders and clocks."""
    checkpoint = torch.load(path, weights_only=True)
    for entry in checkpoint["history"]:
        for key in CLOCKS & entry.keys():
            del entry[key]
    del checkpoint["args"], checkpoint["epoch_seconds"]
    return checkpoint


def assert_same(found, expected, where):
    """Equality to the bit, whatever the nesting."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where} {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_same(found[number], value, f"{where} {number}")
    else:
        assert found == expected, where
