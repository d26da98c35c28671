"""Mean, deviation, interpolation and crop of a network of timm, from training to prediction."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from datasets import IMAGENET, InputStatistics, build_transform
from inference.predictor import load_predictor
from models.baselines import input_statistics
from readers.annotations import read_ser
from readers.checkpoint import read_checkpoint
from runtime.reports import read_predictions
from tests.conftest import SMALL
from tests.test_main import run_here
from utils import UserError

IMAGENETS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OWN = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 0.95, "crop_mode": "center"}


def picture(width=90, height=70):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_they_are_those_of_the_network_as_timm_resolves_them(name):
    resolved = resolve_model_data_config(timm.create_model(name))
    found = input_statistics(name)
    assert {key: list(value) if key in IMAGENETS else value for key, value in resolved.items() if key in found} == found


def test_an_unknown_network_has_none():
    assert input_statistics("resnet5") is None


# Centre crops of other shares, above 1 as well; both sides resized; the long side resized and the rest filled.
@pytest.mark.parametrize("name", ["test_resnet", "inception_v3", "volo_d4_448", "dm_nfnet_f0", "deepseek_vit_412m"])
@pytest.mark.parametrize("size", [64, (64, 96)])
def test_the_evaluation_transform_is_timms(name, size):
    statistics = input_statistics(name)
    expected = create_transform(size, **statistics)(picture())
    found = build_transform(False, input_size=size, statistics=InputStatistics(**statistics))(picture())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_without_statistics_they_are_imagenets_and_the_published_crop():
    found = build_transform(False, input_size=64)(picture())
    published = {**IMAGENETS, "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    torch.testing.assert_close(found, create_transform(64, **published)(picture()), atol=1e-6, rtol=1e-6)
    assert torch.equal(found, build_transform(False, input_size=64, statistics=IMAGENET)(picture()))


def test_training_normalises_with_them():
    settings = {"input_size": 32, "auto_augment": None, "color_jitter": None, "scale": (1.0, 1.0)}
    grey = Image.new("RGB", (32, 32), (51, 51, 51))
    assert torch.allclose(
        build_transform(True, **settings, statistics=InputStatistics(**OWN))(grey), torch.tensor(-0.6)
    )


@pytest.fixture(scope="module")
def trained(sticker_set, tmp_path_factory):
    """A network of timm with statistics of its own, after an epoch, and its predictions on test."""
    folder = tmp_path_factory.mktemp("timm")
    arguments = ["--model", "timm/test_resnet", "--epochs", "1", "--warmup-epochs", "0", "--data-path", sticker_set]
    finished = run_here("main_V.py", *SMALL, *arguments, "--output_dir", folder)
    assert finished.code == 0, finished.output
    return folder / "checkpoint_timm_test_resnet.pth"


def assert_predictions(checkpoint, sticker_set, table):
    """The predictor gives the probabilities of an evaluation."""
    samples = read_ser(sticker_set, "test")
    predictor = load_predictor(checkpoint, device="cpu")
    expected = read_predictions(table)
    for one, row in zip(predictor([one.path for one in samples]), expected.probabilities, strict=True):
        np.testing.assert_allclose([one.probabilities[name] for name in expected.class_names], row, atol=1e-5)
    return predictor


def test_a_checkpoint_keeps_them_for_prediction(trained, sticker_set):
    assert read_checkpoint(trained, "--resume").args["input_statistics"] == OWN
    assert json.loads((trained.parent / "options.json").read_text())["options"]["input_statistics"] == OWN
    predictor = assert_predictions(trained, sticker_set, trained.with_name(f"{trained.stem}_test.csv"))
    assert predictor.statistics == InputStatistics(**OWN)


def test_a_checkpoint_without_them_means_imagenets(trained, sticker_set, tmp_path):
    content = torch.load(trained, weights_only=True)
    del content["args"]["input_statistics"]
    old = tmp_path / trained.name
    torch.save(content, old)
    arguments = ["--model", "timm/test_resnet", "--data-path", sticker_set, "--resume", old, "--eval"]
    finished = run_here("main_V.py", *SMALL, *arguments)
    assert finished.code == 0, finished.output
    table = old.with_name(f"{old.stem}_test.csv")
    assert table.read_text() != trained.with_name(table.name).read_text()
    assert assert_predictions(old, sticker_set, table).statistics == IMAGENET


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"mean": "abc"},
        {"std": [0.0, 0.5, 0.5]},
        {"std": [True, 0.5, 0.5]},
        {"interpolation": "random"},
        {"interpolation": ["bicubic"]},
        {"crop_pct": 0},
        {"crop_pct": "0.9"},
        {"crop_mode": "other"},
        {"more": 1},
    ],
)
def test_statistics_that_no_network_has_are_refused(trained, tmp_path, change):
    content = torch.load(trained, weights_only=True)
    content["args"]["input_statistics"] = OWN | change
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="args: input_statistics: expected None or mean, std, interpolation"):
        load_predictor(tmp_path / "wrong.pth")
