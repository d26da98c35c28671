"""Checkpoints of the published script: its groups, its schedule and its names, and how a run goes on from them."""

import argparse
import copy
import json
import math
import shutil

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

import main_V
from models import create_model
from models.pvt import BACKBONES, PVTConfig
from readers.checkpoint import read_checkpoint
from runtime.launch import start_processes
from runtime.options import parse_options
from runtime.setup import build_run
from runtime.state import Training
from tests.conftest import BERT
from tests.test_golden import STATE_DICTS
from tests.test_main import assert_one_line_error, run_here
from utils import UserError

NARROW = PVTConfig(embed_dims=(16, 32, 40, 48), num_heads=(1, 2, 2, 3), mlp_ratios=(2, 2, 2, 2))  # PVT-small's depths
SETTINGS = {"alpha": 2, "hidden_dim": 24, "fuse_mlp_dim": 40, "fuse_num_heads": 4}
FLAGS = (
    "--model pvt_small --alpha 2 --hidden-dim 24 --fuse-mlp-dim 40 --fuse-num-heads 4 --input-size 64 --batch-size 4 "
    "--epochs 6 --num_workers 0 --device cpu --no-repeated-aug --no-figures --drop-path 0"
).split()
DEEP_BERT = BERT | {"num_hidden_layers": 12}
RATE, EPOCH = 3e-4, 1  # of the file, which no flag has


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """PVT-small with its blocks and names, in widths that a test can train."""
    monkeypatch.setitem(BACKBONES, "pvt_small", NARROW)


def build(name, tunebert=False):
    """The network as the published script had it: the frozen text encoder's parameters ask for gradients as well."""
    torch.manual_seed(0)
    bert = {"bert": DEEP_BERT, "tunebert": tunebert} if name == "lora" else {}
    return create_model(name, **SETTINGS, **bert).requires_grad_(True)


def fill_gradients(model, tunebert, seed):
    """Gradients by name; the frozen encoder, and the pooler always, have none."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        torch.manual_seed(1000 * seed + number)
        learns = not name.startswith("text_model.") or (tunebert and ".pooler." not in name)
        parameter.grad = torch.randn_like(parameter) if learns else None


def published_optimizer(model):
    """As old timm built it: biases and vectors without decay, then matrices with it, frozen ones among them."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim <= 1 or name.endswith(".bias")].append(parameter)
    settings = [{"params": groups[True], "weight_decay": 0.0}, {"params": groups[False], "weight_decay": 0.123}]
    return torch.optim.AdamW(settings, lr=RATE, betas=(0.8, 0.95), eps=1e-6)


def published_schedule(optimizer):
    return CosineLRScheduler(optimizer, 9, lr_min=2e-6, cycle_decay=0.1, warmup_t=3, warmup_lr_init=5e-6, noise_seed=42)


def old_layout(schedule):
    """The state as the published script's timm wrote it."""
    state = schedule.state_dict()
    for name in ("k_decay", "t_in_epochs"):
        del state[name]
    return state | {"t_mul": state.pop("cycle_mul"), "decay_rate": state.pop("cycle_decay"), "updates": 3}


def publish(path, name, tunebert=False, **changes):
    """Writes a checkpoint of epoch 1; returns the model, optimizer and schedule behind it."""
    model = build(name, tunebert)
    optimizer = published_optimizer(model)
    schedule = published_schedule(optimizer)
    for epoch in range(EPOCH + 1):
        fill_gradients(model, tunebert, epoch)
        optimizer.step()
        schedule.step(epoch)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": old_layout(schedule),
        "epoch": EPOCH,
        "scaler": {},
        "args": argparse.Namespace(**SETTINGS, model="pvt_small", tunebert=tunebert, sched="cosine", lr=1.0, seed=42),
    }
    content = copy.deepcopy(content) | ({"bert_config": DEEP_BERT} if name == "lora" else {}) | changes
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return model, optimizer, schedule


def resumed(path, name, sticker_set, *more):
    """The training of a run that resumes the file, and what it said."""
    words = [*FLAGS, "--data-path", str(sticker_set), "--resume", str(path), *more]
    options = parse_options(words, main_V.DEFAULTS if name == "lora_v" else {})
    return Training(build_run(options, start_processes("cpu")))


def test_the_narrow_network_has_the_published_names_and_groups():
    model = build("lora")
    assert list(model.state_dict()) == list(STATE_DICTS["LORA locals=1110 alpha=8"])
    assert [len(group["params"]) for group in published_optimizer(model).param_groups] == [345, 203]


@pytest.mark.parametrize(("name", "tunebert"), [("lora", False), ("lora", True), ("lora_v", False)])
def test_a_published_training_goes_on_as_the_published_script_would(name, tunebert, sticker_set, tmp_path, capsys):
    """Moments, rates, settings and schedule are the file's: three more steps and epochs are the same."""
    model, optimizer, schedule = publish(tmp_path / "published.pth", name, tunebert)
    training = resumed(tmp_path / "published.pth", name, sticker_set, *["--tunebert", "True"] * tunebert)
    assert "learning rate" in (said := capsys.readouterr().out)
    assert "are the file's, not the command line's" in said
    assert training.epoch == EPOCH + 1
    own = dict(training.model.named_parameters())
    for epoch in range(EPOCH + 1, EPOCH + 4):
        for group, other in zip(training.optimizer.param_groups, optimizer.param_groups, strict=True):
            for setting in ("lr", "weight_decay", "betas", "eps", "initial_lr"):
                assert group[setting] == other[setting], setting
        fill_gradients(model, tunebert, epoch)
        for parameter_name, parameter in model.named_parameters():
            own[parameter_name].grad = None if parameter.grad is None else parameter.grad.clone()
        optimizer.step()
        training.optimizer.step()
        for parameter_name, parameter in model.named_parameters():
            assert torch.equal(own[parameter_name], parameter), parameter_name
        schedule.step(epoch)
        training.scheduler.step(epoch)


def test_a_run_that_continues_a_published_one_follows_its_file_when_it_is_resumed(sticker_set, tmp_path):
    """And says so; a run that began here follows the command line."""
    _, optimizer, schedule = publish(tmp_path / "published.pth", "lora_v")
    expected = []
    for epoch in range(EPOCH + 1, 6):
        expected.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch)
    words = [*FLAGS, "--data-path", sticker_set, "--output_dir", tmp_path / "out"]
    first = run_here("main_V.py", *words, "--resume", tmp_path / "published.pth", "--epochs", "4")
    assert first.code == 0, first.output
    second = run_here("main_V.py", *words, "--resume", "auto")
    assert second.code == 0, second.output
    for finished in (first, second):
        assert finished.output.count("are the file's, not the command line's") == 1
    rates = [json.loads(line)["train_lr"] for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert rates == pytest.approx(expected, rel=1e-12)
    content = torch.load(tmp_path / "out" / "checkpoint_v.pth", weights_only=True)
    del content["from_published"]
    torch.save(content, tmp_path / "ours.pth")
    third = run_here("main_V.py", *words, "--resume", tmp_path / "ours.pth", "--epochs", "7")
    assert third.code == 0, third.output
    assert "learning rates and schedule follow the command line" in third.output


def test_a_frozen_encoders_old_moments_are_left_out(sticker_set, tmp_path):
    """A training with --tunebert goes on without: the script would keep the moments and never use them."""
    publish(tmp_path / "published.pth", "lora", tunebert=True)
    training = resumed(tmp_path / "published.pth", "lora", sticker_set)
    assert len(training.optimizer.state) == 349
    assert sum(len(group["params"]) for group in training.optimizer.param_groups) == 349


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_initial": 0}, "no rates"),
        ({"t_initial": "x"}, "lr_scheduler, t_initial: expected a value such as"),
        ({"base_values": [1e-3]}, "lr_scheduler, base_values"),
        ({"base_values": [-1.0, -1.0]}, "no rates"),
        ({"warmup_steps": None}, "lr_scheduler, warmup_steps"),
        ({"param_group_field": "betas"}, "lr_scheduler, param_group_field"),
        ({"noise_seed": 1.5}, "lr_scheduler, noise_seed"),
        ({"noise_range_t": [0, 9], "noise_pct": 0}, "no rates"),
        ({"noise_range_t": "all"}, "lr_scheduler, noise_range_t"),
        ({"t_initial": 2, "t_mul": 0.1}, "no rates"),
        ({"lr_min": math.nan}, "lr_scheduler, lr_min"),
    ],
)
def test_a_schedule_that_would_fail_later_is_named(changes, message, sticker_set, tmp_path):
    _, _, schedule = publish(tmp_path / "published.pth", "lora_v")
    publish(tmp_path / "published.pth", "lora_v", lr_scheduler=old_layout(schedule) | changes)
    words = [*FLAGS, "--data-path", sticker_set, "--resume", tmp_path / "published.pth"]
    assert_one_line_error(run_here("main_V.py", *words), "--resume", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["param_groups"][0].update(lr="x"), "a number from 0 as lr"),
        (lambda state: state["param_groups"][0].update(lr=-1.0), "a number from 0 as lr"),
        (lambda state: state["param_groups"][1].update(betas=(0.9, 1.0)), "betas of 2 numbers from 0 to below 1"),
        (lambda state: state["param_groups"][1].update(betas=0.9), "betas of 2 numbers"),
        (lambda state: state["param_groups"][0].update(params=[0]), "groups of [222, 127] parameters, found [1, 203]"),
        (lambda state: state["state"].update({548: {}}), "states of parameters 0 to 547"),
        (lambda state: state["state"].update({"x": {}}), "states of parameters 0 to 547"),
        (lambda state: state.update(state=[]), "a state for each parameter"),
    ],
)
def test_a_published_optimizer_that_would_fail_later_is_named(change, message, sticker_set, tmp_path):
    _, optimizer, _ = publish(tmp_path / "published.pth", "lora")
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    publish(tmp_path / "published.pth", "lora", optimizer=state)
    words = [*FLAGS, "--data-path", sticker_set, "--resume", tmp_path / "published.pth"]
    finished = run_here("main.py", *words)
    assert_one_line_error(finished, "its optimizer", message)


def test_another_schedule_than_the_files_is_named(sticker_set, tmp_path):
    publish(tmp_path / "published.pth", "lora_v")
    words = [*FLAGS, "--data-path", sticker_set, "--resume", tmp_path / "published.pth", "--sched", "step"]
    assert_one_line_error(run_here("main_V.py", *words), "expected a schedule --sched step, found 'cosine'")


def test_the_published_backbone_and_widths_are_compared_and_read(sticker_set, tmp_path):
    publish(tmp_path / "published.pth", "lora_v")
    words = [*FLAGS, "--data-path", sticker_set, "--resume", tmp_path / "published.pth", "--eval"]
    for flag, value, trained in (
        ("--model", "pvt_medium", "--backbone pvt_small"),
        ("--fuse-mlp-dim", "48", "--fuse-mlp-dim 40"),
        ("--fuse-num-heads", "12", "--fuse-num-heads 4"),
    ):
        assert_one_line_error(run_here("main_V.py", *words, flag, value), f"trained with {trained}, found", value)
    assert read_checkpoint(tmp_path / "published.pth", "checkpoint").settings["fuse_num_heads"] == 4


def test_an_older_checkpoint_has_twelve_heads_and_its_weights_tell_the_mlps_width(sticker_set, tmp_path):
    """Whatever the flag says: a command of then had no flag."""
    publish(tmp_path / "published.pth", "lora_v")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "published.pth", weights_only=True)
    del content["args"].fuse_num_heads, content["args"].fuse_mlp_dim
    torch.save(content, tmp_path / "older.pth")
    settings = read_checkpoint(tmp_path / "older.pth", "checkpoint").settings
    assert (settings["fuse_num_heads"], settings["fuse_mlp_dim"]) == (12, 40)
    words = [*FLAGS, "--data-path", sticker_set, "--resume", tmp_path / "older.pth", "--eval"]
    assert_one_line_error(run_here("main_V.py", *words), "trained with --fuse-num-heads 12, found --fuse-num-heads 4")
    finished = run_here("main_V.py", *words, "--fuse-num-heads", "12", "--fuse-mlp-dim", "3072")
    assert finished.code == 0, finished.output
    assert "--fuse-mlp-dim 40, as its weights have it" in finished.output


@pytest.mark.parametrize("start", [0, 3])
def test_bare_weights_are_trained_on(start, sticker_set, tmp_path):
    """From epoch 0, or --start_epoch, at the rate of a fresh run."""
    model, _, _ = publish(tmp_path / "published.pth", "lora_v")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    words = [*FLAGS, "--data-path", sticker_set, "--epochs", start + 1, "--start_epoch", start]
    folders = tmp_path / "resumed", tmp_path / "fresh"
    finished = run_here("main_V.py", *words, "--output_dir", folders[0], "--resume", tmp_path / "bare.pth")
    assert finished.code == 0, finished.output
    assert f"has weights only: optimizer and schedule start fresh, with epoch {start}" in finished.output
    assert run_here("main_V.py", *words, "--output_dir", folders[1], "--finetune", tmp_path / "bare.pth").code == 0
    entries = [json.loads((folder / "log.txt").read_text()) for folder in folders]
    for key in ("epoch", "train_lr", "train_loss", "test_acc1"):
        assert entries[0][key] == entries[1][key]


def test_finetune_is_evaluated(trained, sticker_set, tmp_path):
    checkpoint = shutil.copy(trained["lora_v"] / "checkpoint_v.pth", tmp_path / "copy.pth")
    words = [*FLAGS, "--backbone", "pvt_demo", "--fuse-mlp-dim", "96", "--fuse-num-heads", "12"]
    words += ["--data-path", sticker_set, "--eval"]
    by_resume = run_here("main_V.py", *words, "--resume", checkpoint)
    figures = json.loads((tmp_path / "copy_test.json").read_text())
    by_finetune = run_here("main_V.py", *words, "--finetune", checkpoint)
    assert by_finetune.code == by_resume.code == 0, by_finetune.output + by_resume.output
    again = json.loads((tmp_path / "copy_test.json").read_text())
    assert again | {"run": None} == figures | {"run": None}
    assert f"accuracy={figures['acc1'] / 100:.6f}" in by_finetune.output
    assert f"* Acc@1 {figures['acc1']:.3f} Acc@5 {figures['acc5']:.3f}" in by_finetune.output
    state = torch.load(checkpoint, weights_only=True)["model"]
    torch.save(state | {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}, tmp_path / "five.pth")
    other_head = run_here("main_V.py", *words, "--finetune", tmp_path / "five.pth")
    assert_one_line_error(other_head, "--finetune", "head.weight [5, 24] for [7, 24]")
    averaged = run_here("main_V.py", *words, "--finetune", checkpoint, "--model-ema")
    assert_one_line_error(averaged, "--model-ema", "name the checkpoint with --resume")


@pytest.mark.parametrize("flag", ["--resume", "--finetune"])
def test_the_published_name_of_a_lora_v_checkpoint_finds_ours(flag, trained, sticker_set, tmp_path):
    shutil.copy(trained["lora_v"] / "checkpoint_v_best.pth", tmp_path)
    shutil.copy(trained["lora_v"] / "checkpoint_v.pth", tmp_path)
    words = [*FLAGS, "--backbone", "pvt_demo", "--fuse-mlp-dim", "96", "--fuse-num-heads", "12"]
    words += ["--data-path", sticker_set, "--eval"]
    for name in ("checkpoint.pth", "checkpoint_best.pth"):
        finished = run_here("main_V.py", *words, flag, tmp_path / name)
        assert finished.code == 0, finished.output
        own = name.replace("checkpoint", "checkpoint_v")
        assert f"{name}: no such file; {own} beside it is read" in finished.output
        assert (tmp_path / own.replace(".pth", "_test.json")).is_file()
    finished = run_here("main_V.py", *words, flag, tmp_path / "checkpoint_epoch0001.pth")
    assert_one_line_error(finished, "no such file")


def test_the_head_of_distillation_in_a_backbones_file_is_dropped(sticker_set, tmp_path):
    backbone = create_model("pvt", backbone="pvt_small").state_dict()
    backbone |= {"head_dist.weight": torch.zeros(1000, 48), "head_dist.bias": torch.zeros(1000)}
    torch.save(backbone, tmp_path / "pvt.pth")
    words = [*FLAGS, "--data-path", sticker_set, "--epochs", "1", "--visfinetune", tmp_path / "pvt.pth"]
    finished = run_here("main_V.py", *words)
    assert finished.code == 0, finished.output
    assert "4 left over: head.bias, head.weight, head_dist.bias, head_dist.weight" in finished.output


def test_the_text_encoders_width_is_compared(small_bert, sticker_set):
    words = [*FLAGS, "--data-path", sticker_set, "--epochs", "1", "--bert-model", small_bert]
    finished = run_here("main.py", *words, "--bert-dim", "768")
    assert_one_line_error(finished, "--bert-dim 768: expected 24, the text encoder's width")
    assert run_here("main.py", *words, "--bert-dim", "24").code == 0
    assert run_here("main_V.py", *words[:-2], "--bert-dim", "768").code == 0


def test_a_width_that_the_weights_do_not_have_is_named(tmp_path):
    """Before a network of that width is built."""
    publish(tmp_path / "published.pth", "lora_v", args=argparse.Namespace(**SETTINGS | {"fuse_mlp_dim": 10**9}))
    with pytest.raises(UserError, match="args: fuse_mlp_dim is 1000000000: expected 40"):
        read_checkpoint(tmp_path / "published.pth", "checkpoint")
