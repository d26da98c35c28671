"""Processes: what the environment says, and processes that SLURM, not torchrun, has started."""

import os
import subprocess
import sys

import pytest
import torch

from runtime.launch import read_environment
from tests.conftest import ROOT, SMALL, free_port
from utils import UserError, choose_device

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_JOB_ID": "12",
    "SLURM_NODELIST": "n7",
}


def test_without_a_launcher_there_is_one_process():
    assert read_environment({}) == (0, 0, 1)
    assert read_environment({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == (0, 0, 1)
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == (0, 0, 1)  # a batch script, no step


def test_torchrun_comes_before_slurm():
    assert read_environment({**SLURM, **TORCHRUN, "SLURM_STEP_NUM_TASKS": "9"}) == (3, 1, 4)


def test_slurm_gives_processes_and_a_meeting_point():
    environment = dict(SLURM)
    assert read_environment(environment) == (3, 1, 4)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("n7", "20012")


def test_incomplete_environment_is_named():
    del (environment := dict(TORCHRUN))["MASTER_PORT"]
    with pytest.raises(UserError, match="MASTER_PORT"):
        read_environment(environment)


def test_device_that_is_not_there_is_named():
    missing = next(name for name in ("mps", "cuda") if not getattr(torch, name).is_available())
    with pytest.raises(UserError, match=f"--device {missing}"):
        choose_device(missing, 0)
    assert choose_device("cpu", 5) == torch.device("cpu")


def test_processes_started_by_slurm_train_together(sticker_set, tmp_path):
    shared = {
        **os.environ,
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    given = [*SMALL, "--epochs", "1", "--data-path", str(sticker_set), "--output_dir", str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "main_V.py", *given],
            cwd=ROOT,
            env={**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 x cpu" in outputs[0]
    assert "epoch 0" not in outputs[1]  # process 0 alone speaks
    assert (tmp_path / "checkpoint_v.pth").is_file()
