"""A run that is killed anywhere and taken up again ends as one that was not disturbed, to the bit.

`python -m pytest --faults tests/test_resume.py tests/test_faults.py` (make test-faults) kills at many more places.
"""

import json
import os
import shutil
import signal
import socket

import pytest
import torch

from models import get_network
from tests.conftest import SMALL, free_port
from tests.faults import STEPS_AN_EPOCH, TRAINING, Run, assert_same_result, command, complete, load, read_log, training


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, sticker_set):
    """The folder of a run that was not interrupted, for each number of processes."""
    folders = {}

    def run(processes):
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp(f"undisturbed{processes}")
            complete(folders[processes], sticker_set, processes=processes)
        return folders[processes]

    return run


def kill_at(folder, data, moment, number, **settings):
    """Starts a run and sends it a signal when it has come to `moment`; returns it after its end."""
    run = training(folder, data, **settings)
    run.wait_for(moment)
    run.signal_all(number)
    run.finish()
    return run


def step_line(processes, step):
    """What a run prints after a step, counted over both epochs."""
    epoch, batch = divmod(step, STEPS_AN_EPOCH[processes])
    return f"epoch {epoch}: {batch + 1}/{STEPS_AN_EPOCH[processes]},"


def saves(folder):
    """Whether a checkpoint is being written."""
    return lambda run: (folder / ".checkpoint_v.pth.partial").exists()


SETTINGS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]
SOME = {"kill": [(1, 2, 4)], "save": [(1, 2)], "signal": [(1, 2, "SIGINT", 130)]}
ALL = {
    "kill": [(p, w, step) for p, w in SETTINGS for step in range(2, 2 * STEPS_AN_EPOCH[p])],
    "save": [setting for setting in SETTINGS for _ in range(3)],
    "signal": [
        (p, w, name, code) for p, w in SETTINGS for name, code in (("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130))
    ],
}


def pytest_generate_tests(metafunc):
    cases = ALL if metafunc.config.getoption("--faults") else SOME
    for kind, names in (
        ("kill", "processes, workers, step"),
        ("save", "processes, workers"),
        ("signal", "processes, workers, name, code"),
    ):
        if metafunc.function.__name__.endswith(f"_by_{kind}"):
            metafunc.parametrize(names, cases[kind])


def test_killed_at_a_step_by_kill(processes, workers, step, sticker_set, undisturbed, tmp_path):
    """SIGKILL to everything after a step; `--checkpoint-steps 2` has written one by then."""
    settings = {"processes": processes, "workers": workers}
    run = kill_at(tmp_path, sticker_set, step_line(processes, step), signal.SIGKILL, **settings)
    assert "Traceback" not in run.output
    assert "resumed" in complete(tmp_path, sticker_set, **settings)
    assert_same_result(tmp_path, undisturbed(processes))


def test_killed_in_a_save_by_save(processes, workers, sticker_set, undisturbed, tmp_path):
    """SIGKILL while the second checkpoint or a later one is being written."""
    settings = {"processes": processes, "workers": workers}
    for _ in range(20):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        run = training(tmp_path, sticker_set, **settings)
        run.wait_for(lambda run: (tmp_path / "checkpoint_v.pth").exists())
        run.wait_for(saves(tmp_path))
        run.signal_all(signal.SIGKILL)
        run.finish()
        if (tmp_path / ".checkpoint_v.pth.partial").exists():
            break
    assert (tmp_path / ".checkpoint_v.pth.partial").exists(), "no kill came within a save"
    load(tmp_path / "checkpoint_v.pth")  # whole
    complete(tmp_path, sticker_set, **settings)
    assert_same_result(tmp_path, undisturbed(processes))


def test_stopped_by_signal(processes, workers, name, code, sticker_set, undisturbed, tmp_path):
    """The step in flight is finished and a checkpoint written; loader workers get the signal too and live on."""
    settings = {"processes": processes, "workers": workers}
    run = kill_at(tmp_path, sticker_set, step_line(processes, 0), getattr(signal, name), **settings)
    assert f"{name}: the run ends after this step, with a checkpoint" in run.output
    assert "checkpoint written" in run.output
    if processes == 1:  # the launcher has exit codes and messages of its own
        assert run.process.returncode == code
        assert "Traceback" not in run.output
    step = torch.load(tmp_path / "checkpoint_v.pth", weights_only=True)["step"]
    assert step >= 1
    assert f"continues after {step} of" in complete(tmp_path, sticker_set, **settings)
    assert_same_result(tmp_path, undisturbed(processes))


@pytest.mark.faults
def test_a_signal_in_an_evaluation_leaves_a_checkpoint(sticker_set, undisturbed, tmp_path):
    run = kill_at(tmp_path, sticker_set, "epoch 0: 6/6", signal.SIGTERM)
    assert run.process.returncode == 143, run.output
    complete(tmp_path, sticker_set)
    assert_same_result(tmp_path, undisturbed(1))


@pytest.mark.faults
@pytest.mark.parametrize("name", ["lora", "tgca_pvt"])
def test_text_model_resumes_to_the_bit(name, sticker_set, small_bert, tmp_path):
    """The dropout of the frozen text encoder is part of it; for TGCA-PVT the topics of a batch too."""
    settings = {"script": "main.py"}
    given = ["--model", name, "--bert-model", small_bert, "--tunebert", "True"]
    complete(tmp_path / "whole", sticker_set, *given, **settings)
    run = training(tmp_path / "killed", sticker_set, *given, **settings)
    run.wait_for(step_line(1, 8))
    run.signal_all(signal.SIGKILL)
    run.finish()
    complete(tmp_path / "killed", sticker_set, *given, **settings)
    for end in (".pth", "_best.pth"):
        file = f"{get_network(name).checkpoint}{end}"
        found, expected = load(tmp_path / "killed" / file), load(tmp_path / "whole" / file)
        assert all(torch.equal(value, expected["model"][key]) for key, value in found["model"].items())
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")


@pytest.mark.faults
def test_accumulated_steps_of_another_optimizer_resume_to_the_bit(sticker_set, tmp_path):
    """Batches of 2, 5 a step, 2 in the last; killed in the evaluation after it; Lookahead counts steps of its own."""
    given = "--batch-size 2 --grad-accum-steps 5 --checkpoint-steps 1 --clip-grad 0.5 --opt lookahead_adamw".split()
    complete(tmp_path / "whole", sticker_set, *given)
    for moment in ("epoch 0: 12/12", "epoch 1: 10/12"):
        run = training(tmp_path / "killed", sticker_set, *given)
        run.wait_for(moment)
        run.signal_all(signal.SIGKILL)
        run.finish()
    complete(tmp_path / "killed", sticker_set, *given)
    assert_same_result(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.faults
def test_number_of_loader_workers_changes_nothing(sticker_set, undisturbed, tmp_path):
    complete(tmp_path, sticker_set, workers=2)
    assert_same_result(tmp_path, undisturbed(1))


@pytest.mark.faults
def test_deterministic_runs_are_the_same(sticker_set, undisturbed, tmp_path):
    """The flag restricts torch to deterministic operations; on a CPU they are the ones it takes anyway."""
    complete(tmp_path, sticker_set, "--deterministic")
    assert_same_result(tmp_path, undisturbed(1))


@pytest.mark.faults
def test_other_number_of_processes_is_said_and_goes_on(sticker_set, tmp_path):
    run = kill_at(tmp_path, sticker_set, step_line(2, 1), signal.SIGTERM, processes=2)
    step = torch.load(tmp_path / "checkpoint_v.pth", weights_only=True)["step"]
    output = complete(tmp_path, sticker_set)
    assert "2 processes wrote the checkpoint and 1 continue: the order of the data" in output, run.output
    assert f"continues after {2 * step} of 6 batches" in output
    assert [entry["epoch"] for entry in read_log(tmp_path)] == [0, 1]
    rates = [entry["lr"] for entry in read_log(tmp_path)]
    assert rates == [1e-5, 1e-5]  # --unscale-lr: the rule knows no processes


@pytest.mark.faults
def test_auto_passes_over_a_damaged_checkpoint(sticker_set, tmp_path):
    complete(tmp_path, sticker_set, "--keep", "2")
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {
        "checkpoint_v.pth", "checkpoint_v_best.pth", "checkpoint_v_epoch0000.pth", "checkpoint_v_epoch0001.pth"
    }  # fmt: skip
    content = (tmp_path / "checkpoint_v.pth").read_bytes()
    (tmp_path / "checkpoint_v.pth").write_bytes(content[: len(content) // 2])
    output = complete(tmp_path, sticker_set, "--keep", "2", "--epochs", "3")
    assert "warning: passed over: --resume" in output
    assert "checkpoint_v_epoch0001.pth: epoch 2 is next" in output
    assert "options that differ from the checkpoint's: epochs 3 (was 2)" in output
    assert {path.name for path in tmp_path.glob("*_epoch*.pth")} == {
        "checkpoint_v_epoch0001.pth", "checkpoint_v_epoch0002.pth"
    }  # fmt: skip
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"no checkpoint")
    run = training(tmp_path, sticker_set)
    assert run.finish() == 2
    assert "none of the 4 checkpoints" in run.output


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.faults
@pytest.mark.parametrize("nodes", [1, 2])
def test_launcher_restarts_a_killed_process(nodes, sticker_set, undisturbed, tmp_path):
    """`--max-restarts`: of two processes one is killed, both start again; of two launchers one is replaced."""
    port = free_port()
    launcher = [f"--nnodes={nodes}", "--max-restarts=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    launcher += ["--monitor-interval=0.1", "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1"]

    def start():
        given = [*TRAINING, "--data-path", sticker_set, "--output_dir", tmp_path, "--resume", "auto"]
        given += ["--num_workers", 0]
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/multi-node.md says why
        return Run(*command(2 // nodes, "main_V.py", "--local-addr=127.0.0.1", *launcher), *given, env=environment)

    if nodes == 1:
        run = start()
        run.wait_for(step_line(2, 3))
        os.kill(run.family()[-1], signal.SIGKILL)
    else:
        run = start()
        run.wait_for(lambda run: is_listening(port))  # the launcher that stays keeps the rendezvous
        other = start()
        both = lambda: run.output + other.output  # noqa: E731
        run.wait_for(lambda run: step_line(2, 3) in both())
        other.signal_all(signal.SIGKILL)
        other.finish()
        other = start()
        assert other.finish() == 0, both()
    assert run.finish() == 0, run.output
    assert_same_result(tmp_path, undisturbed(2))


@pytest.mark.faults
def test_a_log_of_another_run_is_set_aside(trained, sticker_set, tmp_path):
    shutil.copy(trained["lora_v"] / "checkpoint_v.pth", tmp_path / "old.pth")
    (tmp_path / "log.txt").write_text(json.dumps({"epoch": 0, "test_acc1": 1.0}) + "\n")
    given = [*SMALL, "--epochs", "3", "--data-path", sticker_set, "--output_dir", tmp_path]
    run = Run(*command(1), *given, "--resume", tmp_path / "old.pth")
    assert run.finish() == 0, run.output
    assert len(list(tmp_path.glob("log.until-*.txt"))) == 1
    assert [entry["epoch"] for entry in read_log(tmp_path)] == [0, 1, 2]
