"""Machines and shells of other kinds: no user name, no home, a pipe that closes, Ctrl-C at any time, no SIGUSR1."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.surroundings import give_home
from tests.conftest import ROOT, SMALL, run_process
from utils import shortage

UNKNOWN_USER = ["unshare", "-U", "--map-user=54321", "--map-group=54321", "env", "-i", f"PATH={os.environ['PATH']}"]


@pytest.fixture(scope="module")
def unknown_user():
    """The start of a command line that runs as a user whom the system does not know."""
    try:
        subprocess.run([*UNKNOWN_USER, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let a process take another user's number")
    return [*UNKNOWN_USER, "OMP_NUM_THREADS=1"]


@pytest.mark.parametrize("known", [[], ["USER=x"], ["HOME=/"], ["HOME=/nowhere", "USER="]])
def test_a_user_without_a_name_or_a_home_can_predict(known, unknown_user, sticker_set, tmp_path):
    image = next((sticker_set / "Images" / "squares").iterdir())
    command = [*unknown_user, *known, f"TMPDIR={tmp_path}", sys.executable, "tools/predict.py"]
    finished = run_process(*command, "weights/lora_v_demo.pth", image, "--device", "cpu", "--format", "csv")
    assert finished.code == 0, finished.output
    assert finished.output.startswith("image,text,prediction")


def test_a_home_that_is_there_stays(monkeypatch, tmp_path):
    for name, value in (("HOME", str(tmp_path)), ("USER", "somebody")):
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    give_home()
    assert dict(os.environ) == before


@pytest.mark.parametrize("command", [["main.py", "--help"], ["tools/predict.py", "--help"]])
def test_a_closed_pipe_is_no_error(command):
    line = f"{sys.executable} {' '.join(command)} | true; exit ${{PIPESTATUS[0]}}"
    finished = run_process("bash", "-c", line)
    assert finished.code in (0, 141)
    assert finished.output == ""


def test_a_training_whose_output_is_closed_writes_a_checkpoint(sticker_set, tmp_path):
    given = [*SMALL, "--epochs", "9", "--log-every", "1", "--data-path", sticker_set, "--output_dir", tmp_path]
    line = f"{sys.executable} main_V.py {' '.join(map(str, given))} | head -n 6; exit ${{PIPESTATUS[0]}}"
    finished = run_process("bash", "-c", line)
    assert finished.code == 141, finished.output
    assert finished.output.splitlines()[-1] == "main_V.py: stopped: nobody reads its output any more"
    assert "Traceback" not in finished.output
    assert (tmp_path / "checkpoint_v.pth").is_file()


@pytest.mark.parametrize("script", ["main.py", "main_V.py", "tools/predict.py", "tools/visualize.py"])
def test_ctrl_c_during_imports_is_one_line(script):
    """PyTorch's library is mapped early in its import, which takes seconds."""
    given = ["--data-path", "x"] if script.startswith("main") else ["weights/lora_v_demo.pth", "x.png"]
    process = subprocess.Popen(
        [sys.executable, script, *given], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None and "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert (process.returncode, output) == (130, f"{os.path.basename(script)}: stopped: by Ctrl-C\n")


@pytest.mark.long
def test_systems_without_unix_signals_import_and_load():
    """Windows has neither these signals nor a way to block one."""
    program = """
import os, signal, sys
for name in ("SIGUSR1", "pthread_sigmask"):
    delattr(signal, name)
for name in ("O_DIRECTORY", "O_NONBLOCK", "getpgid", "sched_getaffinity"):
    delattr(os, name)
import main
from runtime.launch import usable_cores
from runtime.loader import build_loader, read_batches
assert usable_cores() >= 1
print(len(list(read_batches(build_loader([{"a": 1}] * 4, batch_size=2, num_workers=1)))))
"""
    finished = run_process(sys.executable, "-c", program)
    assert finished == (0, "2\n"), finished.output


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (OSError(24, "Too many open files", "a.png"), "ulimit -n"),
        (OSError(23, "Too many open files in system"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("unable to open shared memory object </torch_1_2> : Too many open files (24)"), "ulimit -n"),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "/dev/shm"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)"), "/dev/shm"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (MemoryError("Caught MemoryError in DataLoader worker process 0.\nTraceback:\n  f()\nMemoryError\n"), "memory"),
    ],
)
def test_errors_of_a_machine_are_told_by_what_it_lacks(error, part):
    assert part in shortage(error)
    assert shortage(error).isprintable()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("Caught KeyError in DataLoader worker process 0.\n  # shared memory\nKeyError: 'x'"),
        FileNotFoundError(2, "No such file or directory"),
        OSError(28, "No space left on device", "/data/x"),
        ValueError("MemoryError"),
    ],
)
def test_other_errors_are_not_the_machines(error):
    assert shortage(error) is None


@pytest.mark.long
def test_names_of_files_are_utf8_in_a_locale_of_ascii(sticker_set, tmp_path):
    image, output = tmp_path / "悲しい.png", tmp_path / "ö.csv"
    image.write_bytes(next((sticker_set / "Images" / "squares").iterdir()).read_bytes())
    command = [sys.executable, "tools/predict.py", "weights/lora_v_demo.pth", image, "--device", "cpu"]
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    finished = run_process(*command, "--format", "csv", "--output", output, env=ascii_alone)
    assert finished.code == 0, finished.output
    assert output.read_text(encoding="utf-8").splitlines()[1].startswith(f"{image},")
    finished = run_process(*command, env=ascii_alone)
    assert finished.output.startswith(f"{tmp_path}/\\u60b2\\u3057\\u3044.png")
