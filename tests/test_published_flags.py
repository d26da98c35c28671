"""The command line of the published script: every flag, its default, its type, how many values it takes."""

import json
import math
from pathlib import Path

import pytest
import torch
from timm.scheduler import create_scheduler
from torch import nn

import main_V
from runtime.optimization import build_optimizer, build_scheduler
from runtime.options import build_parser, parse_options
from tests.conftest import ROOT, SMALL
from tests.test_main import assert_one_line_error, run_here
from utils import UserError

FLAGS = json.loads((Path(__file__).parent / "golden" / "published_flags.json").read_text())
DIFFERENCES = (ROOT / "docs" / "differences.md").read_text()

# What is different on purpose: flag, property, value here. docs/differences.md names each of these flags.
DIFFERENT = {
    ("--config", "default"): None,
    ("--model", "default"): "lora",
    ("--bert-dim", "default"): None,
    ("--data-path", "default"): "SER_Dataset",
    ("--device", "default"): "auto",
    ("--dist-eval", "default"): True,
    ("--mixup-prob", "default"): 1.0,
    ("--tunebert", "nargs"): "?",
    ("--locals", "nargs"): 4,
    ("--cutmix-minmax", "nargs"): 2,
}
WORDS = {"int": "7", "float": "0.5", "bool": "True", "str": "x"}
VALUES = {"--mixup-mode": "elem", "--remode": "rand", "--device": "cuda:1", "--model": "pvt_medium"}


def action_of(flag):
    parser = build_parser({})
    return next(one for one in parser._actions if flag.replace("_", "-") in one.option_strings)


def is_switch(action):
    return action.nargs == 0 and action.type is None


def test_there_are_seventy_flags():
    assert len(FLAGS) == 70


@pytest.mark.parametrize("published", FLAGS, ids=lambda one: one["flags"][0])
def test_a_published_flag_has_its_names_default_type_and_number_of_values(published):
    flag, kind = published["flags"][0], published["type"]
    action = action_of(flag)
    assert {name.replace("_", "-") for name in published["flags"]} <= set(action.option_strings)
    assert action.default == DIFFERENT.get((flag, "default"), published["default"])
    if kind == "switch":
        assert is_switch(action)
    else:
        assert action.nargs == DIFFERENT.get((flag, "nargs"), published["nargs"])
    if published["choices"]:
        assert set(published["choices"]) <= set(action.choices)


@pytest.mark.parametrize("published", FLAGS, ids=lambda one: one["flags"][0])
def test_a_published_flag_takes_a_value_of_its_type(published):
    flag, kind = published["flags"][0], published["type"]
    if kind == "switch":
        words, expected = [], not flag.startswith("--no-")
    else:
        word = VALUES.get(flag, published["choices"][-1] if published["choices"] else WORDS[kind])
        count = {"--locals": 4, "--cutmix-minmax": 2}.get(flag, 1)
        words, expected = [word] * count, {"int": int, "float": float, "bool": bool, "str": str}[kind](word)
    if flag == "--config":
        words = [expected := "configs/pvt/pvt_small.py"]
    options = parse_options([flag, *words], {})
    value = getattr(options, "backbone" if flag == "--model" else action_of(flag).dest)
    value = value[0] if isinstance(value, list) else value
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("flag", sorted({flag for flag, _ in DIFFERENT}))
def test_the_documents_name_each_flag_that_differs(flag):
    assert f"`{flag}`" in DIFFERENCES


def rates(scheduler, optimizer, epochs):
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    return found


@pytest.mark.parametrize(
    ("noise", "noisy"),
    [(["0.2", "0.8"], range(5, 17)), (["0.5"], range(11, 20)), (["0", "1"], range(1, 20)), ([], ())],
)
def test_noise_of_the_learning_rate_is_timms(noise, noisy):
    """Shares of the epochs: of 20, 0.2 0.8 are the rates of epochs 5 to 16."""
    words = ["--epochs", "20", "--warmup-epochs", "0", "--lr", "0.01", "--unscale-lr"]
    plain = parse_options(words, {})
    options = parse_options([*words, "--lr-noise", *noise], {}) if noise else plain
    found, expected, smooth = ([], [], [])
    for one, build, into in (
        (options, lambda *given: build_scheduler(*given), found),
        (options, lambda *given: create_scheduler(*given)[0], expected),
        (plain, lambda *given: build_scheduler(*given), smooth),
    ):
        optimizer = build_optimizer(one, nn.Linear(2, 2), 1)
        into += rates(build(one, optimizer), optimizer, 20)
    assert found == expected
    assert [epoch for epoch in range(20) if found[epoch] != smooth[epoch]] == list(noisy)


def test_noise_that_would_be_drawn_forever_is_refused():
    options = parse_options(["--lr-noise", "0.2", "--lr-noise-pct", "0"], {})
    with pytest.raises(UserError, match="--lr-noise-pct 0: expected"):
        build_scheduler(options, build_optimizer(options, nn.Linear(2, 2), 1))


@pytest.mark.parametrize("backbone", ["pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"])
def test_model_names_the_backbone_and_the_script_the_network(backbone, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(f"cfg = dict(model={backbone!r}, drop_path=0.1, clip_grad=None)\n")
    for words in (["--model", backbone], ["--config", str(config)]):
        for defaults, name in (({}, "lora"), (main_V.DEFAULTS, "lora_v")):
            options = parse_options(words, defaults)
            assert (options.model, options.backbone, options.drop_path) == (name, backbone, 0.1)
    assert parse_options(["--config", str(config), "--backbone", "pvt_demo"], {}).backbone == "pvt_demo"
    assert parse_options(["--model", "pvt", "--config", str(config)], {}).model == "pvt"


def test_two_backbones_in_a_config_are_named(tmp_path):
    (tmp_path / "config.py").write_text("cfg = dict(model='pvt_small', backbone='pvt_tiny')\n")
    with pytest.raises(UserError, match="model pvt_small and backbone pvt_tiny both name"):
        parse_options(["--config", str(tmp_path / "config.py")], {})


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cpu:0", "gpu"])
def test_another_device_is_named(device):
    with pytest.raises(UserError, match=f"--device: expected auto, cpu, cuda.*found '{device}'"):
        parse_options(["--device", device], {})


@pytest.mark.parametrize(
    ("optimizer", "betas"),
    [
        ("adamw", "0.9"),
        ("adamw", "0.9 0.99 0.999"),
        ("adan", "0.9 0.9"),
        ("sgd", "0.9 0.99"),
        ("adam", "0.9 0.9 0.9 0.9"),
    ],
)
def test_betas_that_the_optimizer_refuses_are_one_line(optimizer, betas):
    options = parse_options(["--opt", optimizer, "--opt-betas", *betas.split()], {})
    with pytest.raises(UserError, match=f"--opt-betas {betas}: --opt {optimizer} refuses") as caught:
        build_optimizer(options, nn.Linear(2, 2), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("optimizer", "betas"), [("adamw", "0.8 0.9"), ("adan", "0.9 0.8 0.7")])
def test_betas_reach_the_optimizer(optimizer, betas):
    options = parse_options(["--opt", optimizer, "--opt-betas", *betas.split()], {})
    group = build_optimizer(options, nn.Linear(2, 2), 1).param_groups[0]
    assert group["betas"] == tuple(map(float, betas.split()))


def test_flags_without_effect_are_said_if_they_are_given(sticker_set):
    arguments = [*SMALL, "--epochs", "1", "--data-path", sticker_set]
    flags = ["--resplit", "--use_mcloader", "--inat-category", "name"]
    finished = run_here("main_V.py", *arguments, *flags)
    assert finished.code == 0, finished.output
    assert finished.output.count("--resplit, --use-mcloader, --inat-category: without effect") == 1
    finished = run_here("main_V.py", *arguments)
    assert finished.code == 0, finished.output
    assert "without effect" not in finished.output
    assert "without --output-dir nothing is saved" in finished.output


@pytest.mark.parametrize(
    "flags", ["--protocol val", "--checkpoint-steps 1", "--keep 1", "--profile 1", "--tensorboard", "--wandb"]
)
def test_what_writes_into_the_output_folder_needs_one(flags, sticker_set):
    finished = run_here("main_V.py", *SMALL, "--data-path", sticker_set, *flags.split())
    assert_one_line_error(finished, "--output-dir is missing", flags.partition(" ")[0])


def test_nothing_is_saved_without_an_output_folder(sticker_set, tmp_path, monkeypatch):
    """Not even into the folder that the run is started in; the majority, which is not trained, neither."""
    monkeypatch.chdir(tmp_path)
    for model in ("lora_v", "majority"):
        finished = run_here("main_V.py", *SMALL, "--epochs", "1", "--model", model, "--data-path", sticker_set)
        assert finished.code == 0, finished.output
        assert "Acc@1" in finished.output
        assert not list(tmp_path.iterdir())


def test_the_progress_line_has_loss_and_rate(sticker_set):
    finished = run_here("main_V.py", *SMALL, "--epochs", "1", "--log-every", "3", "--data-path", sticker_set)
    lines = [line for line in finished.output.splitlines() if line.startswith("epoch 0: 3/6,")]
    assert len(lines) == 1, finished.output
    loss, rate = (part.split()[1] for part in lines[0].split(", ")[2:4])
    assert math.isfinite(float(loss))
    assert float(rate) == 1e-5


def test_full_precision_for_two_epochs_after_the_start(sticker_set, monkeypatch):
    """In evaluation, and from the third epoch on, the forward pass is in bfloat16."""
    seen = []
    forward = nn.Linear.forward

    def watched(self, images):
        seen.append((self.training, torch.is_autocast_enabled("cpu")))
        return forward(self, images)

    monkeypatch.setattr(nn.Linear, "forward", watched)
    flags = ["--epochs", "3", "--start-epoch", "0", "--amp-dtype", "bfloat16", "--fp32-resume"]
    finished = run_here("main_V.py", *SMALL, *flags, "--data-path", sticker_set)
    assert finished.code == 0, finished.output
    phases = [one for number, one in enumerate(seen) if number == 0 or seen[number - 1] != one]
    assert phases[:6] == [(True, False), (False, True), (True, False), (False, True), (True, True), (False, True)]


def test_the_log_has_the_published_keys(trained):
    for folder in trained.values():
        for line in (folder / "log.txt").read_text().splitlines():
            entry = json.loads(line)
            published = {"train_loss", "train_lr", "test_loss", "test_acc1", "test_acc5", "epoch", "n_parameters"}
            assert published <= entry.keys()
            assert entry["train_lr"] == entry["lr"]
            assert entry["test_acc1"] <= entry["test_acc5"] <= 100
        (file,) = folder.glob("checkpoint*_best.pth")
        model = torch.load(file, weights_only=True)["model"]
        assert entry["n_parameters"] == sum(value.numel() for value in model.values())
