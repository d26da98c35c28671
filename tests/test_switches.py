"""The switches of large runs: each changes what it is for, and nothing else."""

import json

import pytest
import torch

from models import create_model
from runtime.optimization import build_optimizer
from runtime.options import parse_options
from tests.conftest import ROOT, SMALL
from tests.test_main import run_here

# Without dropout, so that runs which draw in another order can be compared.
TRAINING = [*SMALL, *"--epochs 1 --drop-path 0 --fuse-dropout-rate 0 --seed 3".split()]


@pytest.fixture(scope="module")
def train(sticker_set, tmp_path_factory):
    """Trains LORA-V for an epoch; returns the folder and the weights."""

    def run(*arguments):
        folder = tmp_path_factory.mktemp("run")
        finished = run_here(
            "main_V.py", *TRAINING, "--data-path", sticker_set, "--output_dir", folder, *map(str, arguments)
        )
        assert finished.code == 0, finished.output
        return folder, torch.load(folder / "checkpoint_v.pth", weights_only=True)["model"]

    return run


@pytest.fixture(scope="module")
def plain(train):
    return train()[1]


@pytest.fixture(scope="module")
def initial(train):
    """The weights that each run begins with."""
    return train("--lr", "0", "--min-lr", "0", "--warmup-lr", "0")[1]


def distance(weights, others):
    assert weights.keys() == others.keys()
    return sum((weights[name] - others[name]).double().square().sum() for name in weights).sqrt().item()


@pytest.mark.parametrize(
    ("switch", "tolerance"),
    [
        (["--cache-images"], 0),
        (["--jpeg-draft"], 0),  # the set's images are PNG
        (["--num_workers", "1", "--prefetch-factor", "4"], 0),
        (["--layer-decay", "1"], 0),
        (["--model-ema"], 0),
        (["--deterministic"], 0),
        (["--timeout", "100", "--keep", "1", "--checkpoint-steps", "3"], 0),
        (["--profile", "2"], 0),
        (["--grad-checkpointing"], 0.02),
        (["--channels-last"], 0.02),
        (["--fused"], 0.02),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_weights_are_those_of_a_plain_run(switch, tolerance, plain, initial, train):
    """To the bit, or to a share of the way that the weights have gone: AdamW makes rounding visible."""
    folder, weights = train(*switch)
    assert distance(weights, plain) <= tolerance * distance(plain, initial)
    if switch[0] == "--profile":
        assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    torch.use_deterministic_algorithms(False)


def test_accumulated_steps_are_those_of_the_large_batch(plain, initial, train):
    """Twelve batches of two, two a step."""
    _, weights = train("--batch-size", "2", "--grad-accum-steps", "2")
    assert distance(weights, plain) <= 0.02 * distance(plain, initial)


def test_learning_rate_counts_the_images_of_a_step():
    model = create_model("lora_v", backbone="pvt_demo", alpha=4, hidden_dim=24)
    rates = [
        build_optimizer(parse_options([*flags, "--lr", "0.512"], {}), model, 2).param_groups[0]["lr"]
        for flags in (["--batch-size", "16"], ["--batch-size", "4", "--grad-accum-steps", "4"])
    ]
    assert rates == [pytest.approx(0.032)] * 2


def test_steps_per_epoch_ends_the_epoch(train):
    folder, _ = train("--steps-per-epoch", "2", "--grad-accum-steps", "2")
    checkpoint = torch.load(folder / "checkpoint_v.pth", weights_only=True)
    steps = {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()}
    assert steps == {2}


def test_moving_average_is_evaluated_and_kept(train, sticker_set):
    folder, weights = train("--model-ema", "--model-ema-decay", "0.5")
    checkpoint = torch.load(folder / "checkpoint_v.pth", weights_only=True)
    average = checkpoint["model_ema"]
    assert any(not torch.equal(average[name], weights[name]) for name in weights)
    results = {}
    for name, flags in (("average", ["--model-ema"]), ("weights", [])):
        arguments = [*SMALL, "--data-path", sticker_set, "--resume", folder / "checkpoint_v.pth", "--eval", *flags]
        finished = run_here("main_V.py", *arguments, "--output_dir", folder / name)
        assert finished.code == 0, finished.output
        results[name] = json.loads((folder / name / "checkpoint_v_test.json").read_text())["loss"]
    trained = json.loads((folder / "checkpoint_v_test.json").read_text())["loss"]
    assert results["average"] == trained != results["weights"]


def test_learning_rates_fall_from_the_head_to_the_images():
    model = create_model("lora_v", backbone="pvt_demo", alpha=4, hidden_dim=24)
    options = parse_options(["--layer-decay", "0.5", "--unscale-lr"], {})
    scales = {}
    for group in build_optimizer(options, model, 1).param_groups:
        for parameter in group["params"]:
            name = next(name for name, other in model.named_parameters() if other is parameter)
            scales[name] = group["lr_scale"]
    assert scales.keys() == dict(model.named_parameters()).keys()
    blocks = [scales[f"vision_model.block{stage}.{block}.mlp.fc1.weight"] for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert blocks == [0.5 ** (8 - number) for number in range(8)]
    assert scales["head.weight"] == scales["vision_model.local_proj1.0.weight"] == scales["pos_embed"] == 1
    assert scales["vision_model.patch_embed1.proj.weight"] == scales["vision_model.cls_token1"] == 0.5**9
    assert scales["vision_model.cls_token"] == scales["vision_model.pos_embed4"] == 0.5**3


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--steps-per-epoch", "7"], ["--steps-per-epoch", "6"]),
        (["--fused", "--opt", "lamb"], ["--opt lamb"]),
        (["--resume", "auto", "--start-epoch", "2"], ["--start-epoch"]),
        (["--layer-decay", "0"], ["--layer-decay"]),
        (["--timeout", "0"], ["--timeout"]),
    ],
)
def test_wrong_value_is_named(flags, parts, sticker_set, tmp_path):
    finished = run_here("main_V.py", *TRAINING, "--data-path", sticker_set, "--output_dir", tmp_path, *flags)
    assert finished.code == 2, finished.output
    assert all(part in finished.output.splitlines()[-1] for part in parts), finished.output


def test_gradients_travel_once_a_step(run_torchrun):
    """Two processes, three batches a step: the hook that DDP calls for an exchange counts."""
    finished = run_torchrun(2, ROOT / "tests" / "count_exchanges.py")
    assert finished.code == 0, finished.output
    assert "exchanges 2, same as one process True" in finished.output
