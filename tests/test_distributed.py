"""Processes: what the environment says, and processes that SLURM, not torchrun, has started."""

import os
import pty
import subprocess
import sys

import pytest
import torch

from runtime.launch import local_processes, read_environment, set_threads, usable_cores
from tests.conftest import ROOT, SMALL, free_port, run_process
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


def test_a_step_of_slurm_says_at_once_what_it_waits_for(sticker_set, tmp_path):
    """As in the shell of `srun --ntasks=2 --pty bash` with its terminal taken away: the second task never comes."""
    alone = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}
    given = [*SMALL, "--timeout", "1", "--data-path", sticker_set, "--output_dir", tmp_path]
    finished = run_process(sys.executable, "main_V.py", *given, env={**alone, "MASTER_PORT": str(free_port())})
    said, error = finished.output.splitlines()
    assert said.startswith("SLURM: waits at 127.0.0.1:")
    assert error.startswith("main_V.py: error: SLURM's step of 2 tasks: process 0 of 2 cannot join")
    assert finished.code == 2
    for line in (said, error):
        assert "unset SLURM_STEP_NUM_TASKS" in line
        assert "srun" in line


def read_in_terminal(task):
    """What `read_environment` gives to a process with a terminal; SLURM_TASK_PID is of the process or another."""
    program = f"""
import os
from runtime.launch import read_environment
os.environ["SLURM_TASK_PID"] = str({task})
print(read_environment(os.environ), "SLURM_STEP_NUM_TASKS" in os.environ)
"""
    master, terminal = pty.openpty()
    try:
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, **SLURM},
            stdin=terminal,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finally:
        os.close(master)
        os.close(terminal)


def test_a_command_typed_in_a_shell_of_slurm_is_one_process():
    said, result = read_in_terminal(1).splitlines()
    assert said.startswith("SLURM: an interactive shell in a step of 4 tasks: one process runs")
    assert result == "(0, 0, 1) False"
    assert read_in_terminal("os.getpid()") == "(3, 1, 4) True\n"  # srun --pty python


def test_wrong_variables_are_named():
    with pytest.raises(UserError, match="environment variable RANK: expected a number, found 'x'"):
        read_environment({**TORCHRUN, "RANK": "x"})
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        read_environment({**SLURM, "SLURM_NODELIST": "n[1-2]"})


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        ({}, None),
    ],
)
def test_cores_are_those_of_the_affinity_and_the_quota(files, quota, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    affinity = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == (affinity if quota is None else min(affinity, quota))


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    before = torch.get_num_threads()
    cores = usable_cores()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    try:
        torch.set_num_threads(cores)
        assert set_threads() == f"1 a process ({cores} here, {cores} cores; OMP_NUM_THREADS changes it)"
        assert torch.get_num_threads() == 1
        torch.set_num_threads(cores)
        monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
        assert set_threads() == f"{cores} a process (OMP_NUM_THREADS={cores})"
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_torchruns_single_thread_is_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert set_threads().endswith("(OMP_NUM_THREADS=1, which torchrun sets unless it is set)")


def test_slurm_says_how_many_processes_are_on_a_machine():
    assert local_processes({}) == 1
    assert local_processes({"LOCAL_WORLD_SIZE": "4"}) == 4
    assert local_processes({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3(x2),1"}) == 3
    assert local_processes(SLURM) == 4
