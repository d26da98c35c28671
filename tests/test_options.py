"""Precedence of defaults, config file and command line, and what a wrong option says."""

import pytest
from conftest import ROOT

from runtime.options import parse_options
from utils import UserError

CONFIGS = ROOT / "configs"


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "config.py"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def test_published_defaults():
    options = parse_options([], {})
    found = (
        options.input_size,
        options.batch_size,
        options.epochs,
        options.smoothing,
        options.mixup,
        options.drop_path,
    )
    assert found == (448, 32, 50, 0.2, 0.0, 0.1)
    assert (options.lr, options.warmup_lr, options.min_lr, options.weight_decay) == (1e-3, 1e-5, 1e-5, 0.05)
    assert (options.alpha, options.locals, options.tunebert, options.repeated_aug) == (8, [1, 1, 1, 0], False, True)
    assert (options.clip_grad, options.reprob, options.aa) == (None, 0.0, "rand-m9-mstd0.5-inc1")


def test_command_line_beats_config_beats_script_beats_default(config):
    arguments = config("cfg = dict(alpha=4, epochs=7)")
    options = parse_options([*arguments, "--epochs", "9"], {"epochs": 3, "seed": 5, "alpha": 2})
    assert (options.alpha, options.epochs, options.seed, options.batch_size) == (4, 9, 5, 32)


def test_command_line_beats_config_with_the_default_value(config):
    assert parse_options([*config("cfg = dict(alpha=4)"), "--alpha", "8"], {}).alpha == 8


def test_config_without_cfg_and_with_base(tmp_path):
    (tmp_path / "base.py").write_text("alpha = 2\nepochs = 3\n")
    (tmp_path / "config.py").write_text("_base_ = './base.py'\nepochs = 4\nlocals = (0, 1, 1, 0)\n")
    options = parse_options(["--config", str(tmp_path / "config.py")], {})
    assert (options.alpha, options.epochs, options.locals) == (2, 4, [0, 1, 1, 0])


@pytest.mark.parametrize("path", [one for one in CONFIGS.rglob("*.py") if "\ncfg = " in one.read_text()], ids=str)
def test_shipped_configs_are_read(path):
    assert parse_options(["--config", str(path)], {}).backbone.startswith("pvt_")


def test_config_names_the_model(config):
    assert parse_options(config("cfg = dict(model='timm/resnet18')"), {}).model == "timm/resnet18"


def test_config_may_import(config):
    assert parse_options(config("import math\ncfg = dict(alpha=int(math.sqrt(16)))"), {}).alpha == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cfg = dict(alhpa=4)", "unknown key 'alhpa'"),
        ("cfg = dict(alpha='four')", "alpha is 'four': expected a number"),
        ("cfg = dict(model=5)", "model is 5: expected text"),
        ("cfg = dict(model='lora_w')", "model is 'lora_w': expected lora, lora_v"),
        ("cfg = dict(epochs=2.5)", "epochs is 2.5"),
        ("cfg = dict(epochs=True)", "epochs is True"),
        ("cfg = dict(eval=1)", "eval is 1: expected True or False"),
        ("cfg = dict(tunebert='False')", "tunebert is 'False': expected True or False"),
        ("cfg = dict(dataset='CIFAR')", "dataset is 'CIFAR'.*EmotionROI"),
        ("cfg = dict(locals=[1, 1])", "locals is .*list of 4"),
        ("cfg = dict(alpha=[8])", "alpha is .*one value"),
        ("cfg = dict(lr=None)", "lr is None"),
        ("cfg = dict(", "SyntaxError"),
        ("cfg = 1 / 0", "ZeroDivisionError"),
        ("cfg = 5", "dictionary"),
    ],
)
def test_wrong_config_is_named(config, text, message):
    arguments = config(text)
    with pytest.raises(UserError, match=message) as caught:
        parse_options(arguments, {})
    assert arguments[1] in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.py"], "nowhere.py: no such file"),
        (["--alhpa", "4"], "--alhpa"),
        (["--alph", "4"], "--alph"),
        (["--tunebert", "maybe"], "--tunebert.*true or false"),
        (["--batch-size", "0"], "--batch-size.*at least 1"),
        (["--lr", "nan"], "--lr"),
        (["--drop-path", "1"], "--drop-path"),
        (["--epochs", "1" + "0" * 400], "--epochs"),
        (["--lr-noise-pct", "nan"], "--lr-noise-pct"),
        (["--cutmix", "1e-320"], "--cutmix.*0 or a number"),
        (["--dataset", "CIFAR"], "--dataset"),
    ],
)
def test_wrong_flag_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_options(arguments, {})


def test_underscores_and_hyphens_are_the_same():
    for arguments in (["--output_dir=a_b", "--num_workers", "3"], ["--output-dir", "a_b", "--num-workers=3"]):
        options = parse_options(arguments, {})
        assert (options.output_dir, options.num_workers) == ("a_b", 3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], False), (["--tunebert"], True), (["--tunebert", "True"], True), (["--tunebert", "False"], False)],
)
def test_tunebert_is_a_boolean(arguments, expected):
    assert parse_options(arguments, {}).tunebert is expected


def test_repeated_aug_can_be_switched_off():
    assert parse_options(["--no-repeated-aug"], {}).repeated_aug is False
