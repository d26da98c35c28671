"""What no network is needed for: the majority class, and logistic regression on HOG features.

    python tools/baselines.py data/demo                        # scores on test, about 5 seconds
    python tools/baselines.py data/demo --split val --json baselines.json
    python tools/baselines.py data/demo --csv hog_test.csv     # for tools/compare.py: a run's predictions beside HOG's

Both learn from train. Grey or colour gradients and the regression's C are chosen by accuracy on val (macro F1 where
that is equal, then the first in the list), never on test; scores on val itself are therefore a little too good.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from skimage.feature import hog
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/baselines.py` finds the project's modules

from readers.annotations import SER_NAMES, Sample, read_ser
from readers.images import read_image
from runtime.reports import PredictionFile, predictions_table
from utils import UserError

SIZE = 64  # pixels; the side that the pictures are resized to
MODES = ["grey", "colour"]
C_VALUES = [1.0, 10.0, 100.0]


class Baselines(NamedTuple):
    """Scores of both, and the predictions of the regression."""

    scores: dict[str, Any]
    hog: PredictionFile


def load(samples: Sequence[Sample]) -> tuple[list[Image.Image], np.ndarray]:
    """The pictures, on white, SIZE x SIZE, and their labels from 0."""
    pictures = [read_image(one.path).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for one in samples]
    return pictures, np.array([one.label for one in samples])


def features(pictures: Sequence[Image.Image], mode: str) -> np.ndarray:
    """HOG of 8 px cells, blocks of 2 x 2 cells, 9 directions: (pictures, 1764). Of colours, the steepest gradient."""
    settings: dict[str, Any] = {"orientations": 9, "pixels_per_cell": (8, 8), "cells_per_block": (2, 2)}
    if mode == "grey":
        return np.stack([hog(np.asarray(one.convert("L")), **settings) for one in pictures])
    return np.stack([hog(np.asarray(one), channel_axis=-1, **settings) for one in pictures])


def score(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean F1 over the classes that occur or are predicted, both from 0 to 1."""
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def fit_hog(
    train: tuple[list[Image.Image], np.ndarray], val: tuple[list[Image.Image], np.ndarray]
) -> tuple[LogisticRegression, dict[str, Any]]:
    """The regression that is best on val, and its settings."""
    best: tuple[tuple[float, float], LogisticRegression, dict[str, Any]] | None = None
    for mode in MODES:
        train_features, val_features = features(train[0], mode), features(val[0], mode)
        for c in C_VALUES:
            with threadpool_limits(1):  # so small a problem is 3 times slower in threads, 20 times on a busy machine
                model = LogisticRegression(C=c, max_iter=2000).fit(train_features, train[1])
            on_val = score(val[1], model.predict(val_features))
            rank = (on_val["accuracy"], on_val["macro_f1"])
            if best is None or rank > best[0]:
                best = rank, model, {"mode": mode, "C": c}
    assert best is not None
    return best[1], best[2]


def run(root: Path, split: str) -> Baselines:
    """Both baselines on a split ("val" or "test") of a set in SER30K's layout.

    Raises:
        UserError: a set that cannot be read, or whose train split has one class only.
    """
    samples = {name: read_ser(root, name) for name in dict.fromkeys(["train", "val", split])}
    for name, found in samples.items():
        if not found:
            raise UserError(f"{root}: its {name} split is empty; the baselines need train, val and {split}")
    data = {name: load(found) for name, found in samples.items()}
    train, (pictures, labels) = data["train"], data[split]
    if len(set(train[1])) < 2:
        raise UserError(f"{root}: its train split has one class only; logistic regression needs two")
    majority = DummyClassifier(strategy="most_frequent").fit(train[1], train[1]).predict(labels)
    model, settings = fit_hog(train, data["val"])
    descriptors = features(pictures, settings["mode"])
    probabilities = np.zeros((len(labels), len(SER_NAMES)))  # 0 for a class that train has not
    probabilities[:, model.classes_] = model.predict_proba(descriptors)
    images = [os.path.relpath(one.path, root) for one in samples[split]]
    hog_predictions = PredictionFile(images, labels, model.predict(descriptors), probabilities, SER_NAMES)
    scores = {
        "split": split,
        "samples": {name: len(found) for name, found in samples.items()},
        "majority": score(labels, majority) | {"class": SER_NAMES[majority[0]]},
        "hog": score(labels, hog_predictions.predictions) | {"chosen_on_val": settings},
    }
    return Baselines(scores, hog_predictions)


def table(results: dict[str, Any]) -> str:
    """The scores as text, in percent."""
    chosen = results["hog"]["chosen_on_val"]
    names = {
        "majority": "majority class",
        "hog": f"logistic regression on HOG ({chosen['mode']}, C = {chosen['C']:g})",
    }
    title = f"{results['split']}, {results['samples'][results['split']]} pictures"
    lines = [f"{title:<48}{'accuracy':>10}{'macro F1':>10}"]
    for key, name in names.items():
        lines.append(f"{name:<48}{100 * results[key]['accuracy']:>10.2f}{100 * results[key]['macro_f1']:>10.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and writes the JSON file where one is asked for.

    Raises:
        UserError: a set that cannot be read, a file that cannot be written.
    """
    parser = argparse.ArgumentParser(description="Scores of the majority class and of logistic regression on HOG.")
    parser.add_argument("root", type=Path, help="folder of a set in SER30K's layout, such as data/demo")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="what is scored (default: test)")
    parser.add_argument("--json", type=Path, help="file that the scores are written to as well")
    parser.add_argument("--csv", type=Path, help="file that the regression's predictions are written to")
    options = parser.parse_args(arguments)
    found = run(options.root, options.split)
    print(table(found.scores))
    files = {"json": json.dumps(found.scores, indent=1) + "\n", "csv": predictions_table(found.hog)}
    for name, content in files.items():
        path = getattr(options, name)
        try:
            if path is not None:
                path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--{name} {path} cannot be written: {error}") from error


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"baselines.py: error: {error}", file=sys.stderr)
        sys.exit(2)
