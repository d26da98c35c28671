"""What goes wrong around a run: full disks, lost folders, dead workers, processes that hang. Each is named."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.conftest import SMALL, write_sticker_set
from tests.faults import TRAINING, Run, command, complete, load, training


def assert_ends(run, code, *parts):
    """The run ends with this code, in one line with these parts and without a traceback of Python's."""
    assert run.finish() == code, run.output
    assert "Traceback (most recent call last)" not in run.output, run.output
    errors = [line for line in run.output.splitlines() if "main_V.py: " in line]
    assert len(errors) == 1, run.output
    for part in parts:
        assert part in errors[0], errors[0]


def has_checkpoint(folder):
    return lambda run: (folder / "checkpoint_v.pth").exists()


@pytest.mark.faults
def test_a_file_that_cannot_grow_keeps_the_checkpoint_before(sticker_set, tmp_path):
    """A limit on the size of files stands in for a quota; `make test-faults` fills a real file system."""
    complete(tmp_path, sticker_set, "--epochs", "1")
    before = (tmp_path / "checkpoint_v.pth").read_bytes()
    limit = f"import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2); "
    limit += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    given = [*command(1)[1:], *TRAINING, "--data-path", sticker_set, "--output_dir", tmp_path, "--resume", "auto"]
    run = Run(sys.executable, "-c", limit, *given)
    assert_ends(run, 2, "checkpoint_v.pth: cannot be written: File too large", "continue with --resume auto")
    assert (tmp_path / "checkpoint_v.pth").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert "epoch 1 is next" in complete(tmp_path, sticker_set)


@pytest.mark.faults
def test_full_disk_keeps_the_checkpoint_before(sticker_set, tmp_path):
    """A tmpfs in which two checkpoints fit, but not the third file, of the first epoch's end."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    run = training(disk, sticker_set, "--epochs", "1")
    assert run.finish() == 0, run.output
    size = (disk / "checkpoint_v.pth").stat().st_size
    shutil.rmtree(disk)
    disk.mkdir()
    given = [*run.process.args[2:]]
    inside = f"mount -t tmpfs -o size={int(2.6 * size)} none {disk} || exit 99; "
    inside += f"{shlex.join([sys.executable, 'main_V.py', *given])}; code=$?; cp -r {disk} {kept}; exit $code"
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    run = Run("unshare", *as_root, "--mount", "sh", "-c", inside)
    assert_ends(run, 2, "checkpoint_v.pth: cannot be written: No space left on device", "make room")
    assert load(kept / "checkpoint_v.pth")["step"] == 6  # before the evaluation
    assert not list(kept.glob(".*"))


@pytest.mark.faults
def test_folder_that_becomes_read_only_keeps_the_checkpoint(sticker_set, tmp_path):
    given = command(1)
    if os.geteuid() == 0:  # root may write anywhere but for this
        given = ["setpriv", "--bounding-set=-dac_override", *given]
    given += [*SMALL, "--epochs", "9", "--checkpoint-steps", "1", "--data-path", sticker_set, "--output_dir", tmp_path]
    run = Run(*given)
    run.wait_for(has_checkpoint(tmp_path))
    tmp_path.chmod(0o555)
    try:
        assert_ends(run, 2, "cannot be written: Permission denied", "check the permissions")
        load(tmp_path / "checkpoint_v.pth")
        again = Run(*given)
        assert_ends(again, 2, f"--output-dir {tmp_path}: cannot be written: Permission denied")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.faults
def test_folder_that_is_deleted_is_named(sticker_set, tmp_path):
    folder = tmp_path / "run"
    run = training(folder, sticker_set, "--epochs", "9")
    run.wait_for(has_checkpoint(folder))
    shutil.rmtree(folder)
    assert_ends(run, 2, "checkpoint_v.pth: cannot be written: its folder is gone")
    assert not folder.exists()


def test_loader_worker_that_dies_is_named(sticker_set, tmp_path):
    run = training(tmp_path, sticker_set, "--epochs", "9", workers=2)
    run.wait_for(has_checkpoint(tmp_path))
    os.kill(run.family()[-1], signal.SIGKILL)
    assert_ends(run, 1, "data loader worker", "lower --num-workers")
    # PyTorch says the first, or the second where the queue's silence is noticed before the signal of the death.
    assert "killed by signal" in run.output or "ended without saying why" in run.output
    load(tmp_path / "checkpoint_v.pth")


@pytest.mark.faults
def test_loader_worker_that_hangs_is_named(sticker_set, tmp_path):
    run = training(tmp_path, sticker_set, "--epochs", "9", "--timeout", "6", workers=1)
    run.wait_for(has_checkpoint(tmp_path))
    worker = run.family()[-1]
    os.kill(worker, signal.SIGSTOP)
    try:
        assert_ends(run, 1, "has not moved for 6 s (--timeout)", "waiting for its images")
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.faults
def test_process_that_hangs_is_named(sticker_set, tmp_path):
    run = training(tmp_path, sticker_set, "--epochs", "9", "--timeout", "6", processes=2)
    run.wait_for(has_checkpoint(tmp_path))
    os.kill(run.family()[-1], signal.SIGSTOP)
    assert run.finish() != 0
    errors = [line for line in run.output.splitlines() if "main_V.py: error: " in line]
    assert len(errors) == 1, run.output
    assert "process 0 of 2 has not moved for 6 s (--timeout), at: epoch" in errors[0]
    assert "process 1 does not answer: stopped, or its machine is lost" in errors[0]


@pytest.mark.faults
def test_peer_of_a_killed_process_says_so(sticker_set, tmp_path):
    run = training(tmp_path, sticker_set, "--epochs", "9", processes=2)
    run.wait_for(has_checkpoint(tmp_path))
    os.kill(run.family()[-1], signal.SIGKILL)
    assert run.finish() != 0
    assert "main_V.py: stopped: another process has ended" in run.output
    assert 'Traceback (most recent call last):\n  File "main_V.py' not in run.output
    load(tmp_path / "checkpoint_v.pth")


@pytest.mark.faults
def test_unreadable_images_are_skipped_counted_and_listed(tmp_path):
    root = write_sticker_set(tmp_path / "SER_Dataset")
    names = {split: [f"{number}.png" for number in numbers] for split, numbers in
             (("train", range(24)), ("val", range(24, 30)), ("test", range(30, 37)))}  # fmt: skip
    bad = [names["train"][3], names["train"][4], names["test"][0], names["test"][5]]
    for name in bad:
        (root / "Images" / "squares" / name).write_bytes(b"no image")
    out = tmp_path / "out"
    run = training(out, root, "--epochs", "1", "--on-bad-image", "skip", processes=2, workers=1)
    assert run.finish() == 0, run.output
    [entry] = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [os.path.basename(path) for path in entry["bad_images"]] == bad[:2]
    assert "2 images of train cannot be read and were replaced" in run.output
    results = json.loads((out / "checkpoint_v_best_test.json").read_text())
    assert [os.path.basename(image["image"]) for image in results["not_scored"]] == bad[2:]
    assert all("another kind of file" in image["reason"] for image in results["not_scored"])
    assert results["samples"] == 5
    assert "test: 2 of 7 images were not scored" in run.output
    scored = (out / "checkpoint_v_best_test.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in scored] == [
        f"Images/squares/{name}" for name in names["test"] if name not in bad
    ]
    assert_ends(training(tmp_path / "other", root, "--epochs", "1"), 2, "squares", "another kind of file")


@pytest.mark.faults
@pytest.mark.parametrize("processes", [2, 3])
def test_a_signal_to_one_process_ends_all_in_an_evaluation(processes, sticker_set, tmp_path):
    """7 images, batches of 1: the processes have another number of batches each."""
    run = training(
        tmp_path, sticker_set, "--batch-size", "1", "--mixup", "0", "--protocol", "published", processes=processes
    )
    run.wait_for("test: 1/")
    os.kill(run.family()[-1], signal.SIGTERM)
    run.finish()
    assert "stopped by a signal in epoch 0" in run.output
    assert load(tmp_path / "checkpoint_v.pth")["step"] == 24 // processes


def test_a_split_without_a_readable_image_is_named(tmp_path):
    root = write_sticker_set(tmp_path / "SER_Dataset")
    for number in range(24, 30):
        (root / "Images" / "squares" / f"{number}.png").write_bytes(b"no image")
    run = training(tmp_path / "out", root, "--on-bad-image", "skip", "--steps-per-epoch", "1")
    assert_ends(run, 2, "val: none of its 6 images can be read")


@pytest.mark.faults
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_the_training_ends_the_process(name, sticker_set, tmp_path):
    run = training(tmp_path, sticker_set)
    run.wait_for("SER_V train")
    run.process.send_signal(getattr(signal, name))
    assert run.finish() == {"SIGINT": 130, "SIGTERM": 143}[name], run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / ".checkpoint_v.pth.partial").exists()


@pytest.mark.faults
def test_processes_of_a_run_end_with_it(sticker_set, tmp_path):
    """SIGKILL to the main process alone: its loader workers notice and end."""
    run = training(tmp_path, sticker_set, "--epochs", "9", workers=2)
    run.wait_for(has_checkpoint(tmp_path))
    workers = run.family()[1:]
    assert len(workers) >= 2
    run.process.kill()
    run.finish()
    waiting = f"while kill -0 {' '.join(map(str, workers))} 2>/dev/null; do sleep 0.2; done"
    subprocess.run(["timeout", "60", "sh", "-c", waiting], check=True)


LIMITED = "import os, resource, sys; resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]),) * 2); "
LIMITED += "os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"


def limited(limit, number, *command_line):
    """Runs a command under a limit of the system."""
    return Run(sys.executable, "-c", LIMITED, limit, number, *command_line)


def small_training(folder, data, workers=2):
    given = [*SMALL, "--epochs", "1", "--num_workers", workers, "--timeout", "60"]
    return ["main_V.py", *given, "--data-path", data, "--output_dir", folder]


# Too few for the loader's queues, for its workers, for what a worker sends.
@pytest.mark.parametrize("number", [12, 16, pytest.param(22, marks=pytest.mark.faults), 30])
def test_too_few_open_files_end_a_run_in_a_line(number, sticker_set, tmp_path):
    run = limited("RLIMIT_NOFILE", number, *small_training(tmp_path, sticker_set))
    assert_ends(run, 1, "too many open files", "ulimit -n", "--num-workers")


@pytest.mark.parametrize("gigabytes", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_too_little_memory_ends_a_run_in_a_line(gigabytes, sticker_set, tmp_path):
    """Not enough to load PyTorch, or not enough to train."""
    run = limited("RLIMIT_AS", gigabytes * 10**9, *small_training(tmp_path, sticker_set))
    assert_ends(run, 1, "out of memory", "--batch-size")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a file system as root")
@pytest.mark.parametrize("size", ["16k", "256k"])  # too small for semaphores, for batches
def test_a_full_dev_shm_ends_a_run_in_a_line(size, sticker_set, tmp_path):
    inside = f"mount -t tmpfs -o size={size} none /dev/shm && exec "
    inside += shlex.join([sys.executable, *map(str, small_training(tmp_path, sticker_set))])
    run = Run("unshare", "--mount", "sh", "-c", inside)
    assert_ends(run, 1, "/dev/shm", "enlarge")


def test_too_few_open_files_end_the_check_of_a_data_set_in_a_line(sticker_set):
    for number in (8, 14):
        run = limited("RLIMIT_NOFILE", number, "tools/check_dataset.py", sticker_set, "--workers", 3)
        assert run.finish() == 1, run.output
        assert run.output.splitlines() == [
            "check_dataset.py: error: too many open files: raise the limit (`ulimit -n`) or lower --workers"
        ]


def test_what_the_machine_lacks_is_no_broken_image(sticker_set, tmp_path):
    """Skipping such images would train on a part of the data, and say nothing of the cause."""
    program = """
import os, sys
from pathlib import Path
from datasets import StickerDataset, build_transform
from readers.annotations import read_ser
from utils import RunError
dataset = StickerDataset(read_ser(sys.argv[1], "test"), build_transform(False, input_size=32), on_bad_image="skip")
try:
    while os.open(os.devnull, os.O_RDONLY):
        pass
except OSError:
    pass
try:
    dataset.__getitems__([0, 1])
except RunError as error:
    print(error)
"""
    run = limited("RLIMIT_NOFILE", 64, "-c", program, sticker_set)
    assert run.finish() == 0, run.output
    assert run.output.startswith("too many open files")
