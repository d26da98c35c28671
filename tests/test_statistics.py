"""Statistics against scikit-learn, scipy and figures of textbooks; comparisons of real prediction files."""

import csv
import json
import sys

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import average_precision_score, f1_score
from sklearn.preprocessing import label_binarize

from engine import mean_average_precision
from runtime.reports import read_predictions
from tests.conftest import run_process
from tools.compare import compare
from tools.tables.statistics import bootstrap, count_rows, grouped_accuracy, mcnemar, measure, paired_bootstrap
from utils import UserError

CLASSES = 5


def sample(n=400, right=0.6, seed=0):
    """Labels, and guesses that are right for about a share of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES - 1, n)  # the last class has no sample
    guesses = np.where(rng.random(n) < right, labels, rng.integers(0, CLASSES, n))
    return labels, guesses


def test_figures_are_those_of_scikit_learn():
    labels, guesses = sample()
    result = measure(*count_rows(labels, [guesses]), CLASSES)
    assert result["acc1"][0, 0] == pytest.approx(100 * np.mean(labels == guesses))
    expected = f1_score(labels, guesses, labels=range(CLASSES), average="macro", zero_division=0)
    assert result["macro_f1"][0, 0] == pytest.approx(expected)


def test_intervals_are_those_of_scipy():
    labels, guesses = sample()
    result = bootstrap(labels, guesses, CLASSES)
    settings = {"n_resamples": 4000, "method": "percentile", "paired": True, "vectorized": False, "rng": 1}
    accuracy = scipy_bootstrap((labels, guesses), lambda a, b: 100 * np.mean(a == b), **settings).confidence_interval
    assert result["acc1"] == pytest.approx(tuple(accuracy), abs=0.6)

    def macro(a, b):
        return f1_score(a, b, labels=range(CLASSES), average="macro", zero_division=0)

    settings["n_resamples"] = 500
    expected = scipy_bootstrap((labels, guesses), macro, **settings).confidence_interval
    assert result["macro_f1"] == pytest.approx(tuple(expected), abs=0.012)


def test_paired_differences_are_those_of_scipy():
    labels, a = sample()
    b = np.where(np.random.default_rng(3).random(len(labels)) < 0.3, labels, a)
    result = paired_bootstrap(labels, a, b, CLASSES)["acc1"]
    difference = 100 * ((b == labels).astype(float) - (a == labels))
    assert result.value == pytest.approx(difference.mean())
    expected = scipy_bootstrap((difference,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.6)
    assert result.p < 0.001
    assert paired_bootstrap(labels, a, a, CLASSES)["acc1"] == (0.0, 0.0, 0.0, 1.0)


def test_mcnemar_is_exact():
    """8 against 2: twice the binomial tail, 2 * (1 + 10 + 45) / 1024."""
    labels = np.zeros(20, dtype=int)
    a, b = labels.copy(), labels.copy()
    a[:2], b[2:10] = 1, 1
    assert mcnemar(labels, a, b) == (8, 2, pytest.approx(112 / 1024))
    assert mcnemar(labels, a, a) == (0, 0, 1.0)


def test_each_group_counts_alike():
    correct = np.array([True, False, True, True, True])
    assert grouped_accuracy(["a", "a", "b", "b", "b"], correct) == pytest.approx(100 * (1 / 2 + 3 / 3) / 2)


def test_mean_average_precision_is_that_of_scikit_learn():
    labels, _ = sample()
    probabilities = np.random.default_rng(1).dirichlet(np.ones(CLASSES), len(labels))
    truth = label_binarize(labels, classes=range(CLASSES))[:, :-1]
    expected = average_precision_score(truth, probabilities[:, :-1], average="macro")
    assert mean_average_precision(probabilities, labels) == pytest.approx(expected)


def write_predictions(path, rows, names=("calm", "glad")):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "prediction", *(f"p_{name}" for name in names)])
        table.writerows([*row, *[1 / len(names)] * len(names)] for row in rows)
    return path


def test_compares_files_in_any_order(tmp_path):
    rows = [(f"{number}.png", "calm", "calm" if number < 6 else "glad") for number in range(8)]
    a = write_predictions(tmp_path / "a.csv", rows)
    better = [(image, label, "calm") for image, label, _ in reversed(rows)]
    b = write_predictions(tmp_path / "b.csv", better, names=("glad", "calm"))
    result = compare(a, b)
    assert (result["a"]["acc1"], result["b"]["acc1"], result["samples"]) == (75.0, 100.0, 8)
    assert result["mcnemar"] == {"only_a": 0, "only_b": 2, "p": 0.5}
    assert result["difference"]["acc1"]["value"] == 25.0


def test_an_image_listed_twice_is_compared_in_order(tmp_path):
    rows = [("a.png", "calm", "calm"), ("b.png", "glad", "calm"), ("b.png", "glad", "glad")]
    a = write_predictions(tmp_path / "a.csv", rows)
    assert compare(a, a)["mcnemar"] == {"only_a": 0, "only_b": 0, "p": 1.0}
    b = write_predictions(tmp_path / "b.csv", [rows[2], rows[0], rows[1]])
    assert compare(a, b)["mcnemar"] == {"only_a": 1, "only_b": 1, "p": 1.0}
    with pytest.raises(UserError, match=r"found 1 that are in one of them alone, such as 'b\.png'"):
        compare(a, write_predictions(tmp_path / "c.csv", rows[:2]))


def test_the_command_compares_two_runs(trained, tmp_path):
    files = [trained["lora"] / "checkpoint_test.csv", trained["lora_v"] / "checkpoint_v_test.csv"]
    finished = run_process(sys.executable, "tools/compare.py", *files, "--json", tmp_path / "result.json")
    assert finished.code == 0, finished.output
    result = json.loads((tmp_path / "result.json").read_text())
    metrics = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    for one, expected in zip("ab", metrics, strict=True):
        assert result[one]["acc1"] == pytest.approx(expected["acc1"])
        assert result[one]["macro_f1"] == pytest.approx(expected["macro"]["f1"])
    assert "McNemar" in finished.output


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("1.png", "calm", "calm")], "the same images, found 1 that are in one of them alone, such as '0.png'"),
        ([("0.png", "glad", "calm"), ("1.png", "calm", "calm")], "the same labels"),
        ([("0.png", "sad", "calm")], "expected predictions as an evaluation writes them"),
        ([], "expected predictions as an evaluation writes them"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path, rows, message):
    a = write_predictions(tmp_path / "a.csv", [("0.png", "calm", "calm"), ("1.png", "calm", "glad")])
    with pytest.raises(UserError, match=message):
        compare(a, write_predictions(tmp_path / "b.csv", rows))


def test_no_file_of_predictions(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_predictions(tmp_path / "a.csv")
