"""Every figure of few samples: none, one, two, three; one class; a class without samples."""

import warnings

import numpy as np
import pytest
from PIL import Image

from inference.explain import explain
from inference.overlay import explanation_figure
from inference.predictor import Prediction, load_predictor
from runtime import figures
from runtime.figures import calibration
from tests.conftest import ROOT
from tools.visualize import place_points

FEW = (0, 1, 2, 3)
CLASSES = (1, 2, 7)


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning of matplotlib or numpy is a fault here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def metrics_of(samples, classes):
    """Metrics in which every sample is taken for the first class, and most classes may have no sample."""
    counts = np.zeros((classes, classes), dtype=int)
    for number in range(samples):
        counts[number % classes, 0] += 1
    rows = {
        f"class {row}": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "samples": int(counts[row].sum())}
        for row in range(classes)
    }
    return {"confusion_matrix": counts.tolist(), "per_class": rows, "split": "test", "acc1": 0.0}


def assert_drawn(figure, tmp_path):
    (path,) = figures.save_figure(figure, [tmp_path / "figure.png"])
    with Image.open(path) as picture:
        assert len(picture.convert("L").getcolors()) > 20


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("samples", FEW)
def test_confusion_matrix_and_bars(tmp_path, samples, classes):
    assert_drawn(figures.confusion_matrix(metrics_of(samples, classes)), tmp_path)
    assert_drawn(figures.class_bars(metrics_of(samples, classes)), tmp_path)


@pytest.mark.parametrize("samples", FEW)
def test_reliability_says_of_how_many_samples_it_is(tmp_path, samples):
    confidence, correct = np.array([1.0, 0.5, 0.0])[:samples], np.array([True, False, True])[:samples]
    figure = figures.reliability(confidence, correct)
    titles = ["no samples", "1 sample", "2 samples", "3 samples"]
    assert titles[samples] in figure.axes[0].get_title()
    assert_drawn(figure, tmp_path)


def test_calibration_of_no_samples_is_zero():
    assert calibration(np.array([]), np.array([], dtype=bool)) == (0.0, [])


@pytest.mark.parametrize("epochs", FEW)
def test_curves_show_each_epoch(tmp_path, epochs):
    log = [{"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "val_acc1": 3.0, "lr": 0.1} for epoch in range(epochs)]
    figure = figures.curves(log)
    assert all(line.get_marker() == "o" for axis in figure.axes for line in axis.lines) == (epochs == 1)
    assert_drawn(figure, tmp_path)


@pytest.mark.parametrize("samples", FEW)
def test_mistakes(tmp_path, samples):
    pictures = [Image.new("RGB", (1 + number, 1)) for number in range(samples)]
    assert_drawn(figures.mistake_sheet(pictures, ["happy\nas sad 90 %"] * samples), tmp_path)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6])
def test_a_map_of_few_images(tmp_path, samples, classes, equal):
    features = np.random.default_rng(0).normal(size=(1 if equal else samples, 24)).astype(np.float32)
    features = np.repeat(features, samples, axis=0) if equal else features
    points, method = place_points(features)
    assert points.shape == (samples, 2)
    assert np.isfinite(points).all()
    assert method == ("main axes" if equal or samples < 5 else "t-SNE")
    if not equal:
        assert len(np.unique(points.round(6), axis=0)) == samples
    assert_drawn(figures.feature_map(points, [0] * samples, [f"class {i}" for i in range(classes)], "map"), tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 64)])
def test_an_explanation_of_one_class_or_a_tiny_picture(tmp_path, size):
    predictor = load_predictor(ROOT / "weights" / "lora_v_demo.pth", device="cpu")
    explanation = explain(predictor, Image.new("RGB", size, "red"))
    for probabilities in ({"only": 1.0}, {"yes": 1.0, "no": 0.0}):
        one = explanation._replace(prediction=Prediction(next(iter(probabilities)), probabilities))
        assert_drawn(explanation_figure(one), tmp_path)
