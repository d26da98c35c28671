"""Baselines without a network: the majority class, and logistic regression on HOG features.

    python -m tools.baselines data/demo                        # scores on test, about 5 seconds
    python -m tools.baselines data/demo --split val --json baselines.json
    python -m tools.baselines data/demo --csv hog_test.csv     # for tools/compare.py: a run's predictions beside HOG's

Both learn from train. Grey or colour gradients and the regression's C are chosen by accuracy on val (if equal, by macro
F1, then the first in the list), never on test; scores on val itself are therefore a little too good.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()

import numpy as np
import torch
from PIL import Image
from skimage.feature import hog
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from threadpoolctl import threadpool_limits

from engine import compute_metrics
from readers.annotations import SER_NAMES, Sample, read_ser
from readers.images import read_image
from runtime.reports import PredictionFile, predictions_table
from tools.start import start
from tools.tables.writing import format_table
from utils import UserError, write_json, write_whole

SIZE = 64  # pixels; the side that the pictures are resized to
MODES = ["grey", "colour"]
C_VALUES = [1.0, 10.0, 100.0]


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


def run(root: Path, split: str) -> tuple[dict[str, Any], PredictionFile]:
    """The scores of both on a split ("val" or "test") of a set in SER30K's layout, and the regression's predictions.

    Raises:
        UserError: a set that cannot be read, or whose train split has only one class.
    """
    samples = {name: read_ser(root, name) for name in dict.fromkeys(["train", "val", split])}
    for name, members in samples.items():
        if not members:
            raise UserError(f"{root}: its {name} split is empty; the baselines need train, val and {split}")
    data = {name: load(members) for name, members in samples.items()}
    train, (pictures, labels), names = data["train"], data[split], SER_NAMES
    if len(set(train[1])) < 2:
        raise UserError(f"{root}: its train split has only one class; logistic regression needs two")
    majority = DummyClassifier(strategy="most_frequent").fit(train[1], train[1]).predict(labels)
    model, settings = fit_hog(train, data["val"])
    descriptors = features(pictures, settings["mode"])
    probabilities = np.zeros((len(labels), len(names)))  # 0 for a class that is absent from train
    probabilities[:, model.classes_] = model.predict_proba(descriptors)
    images = [os.path.relpath(one.path, root) for one in samples[split]]
    predictions = PredictionFile(images, labels, model.predict(descriptors), probabilities, names)
    logits = torch.from_numpy(np.log(np.maximum(probabilities, 1e-12)))
    figures = compute_metrics(logits, torch.from_numpy(labels), list(names))
    scores = {
        "split": split,
        "samples": {name: len(members) for name, members in samples.items()},
        "majority": score(labels, majority) | {"class": names[majority[0]]},
        "hog": score(labels, predictions.predictions) | {"chosen_on_val": settings} | figures,
    }
    return scores, predictions


def table(results: dict[str, Any]) -> str:
    """The scores as text, in percent."""
    chosen = results["hog"]["chosen_on_val"]
    titles = {
        "majority": "majority class",
        "hog": f"logistic regression on HOG ({chosen['mode']}, C = {chosen['C']:g})",
    }
    head = [f"{results['split']}, {results['samples'][results['split']]} pictures", "accuracy", "macro F1"]
    shares = {title: [results[key][name] for name in ("accuracy", "macro_f1")] for key, title in titles.items()}
    return format_table(head, [[title, *(f"{100 * share:.2f}" for share in row)] for title, row in shares.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and writes the files that are asked for.

    Raises:
        UserError: a set that cannot be read, a file that cannot be written.
    """
    parser = argparse.ArgumentParser(description="Scores of the majority class and of logistic regression on HOG.")
    parser.add_argument("root", type=Path, help="folder of a set in SER30K's layout, such as data/demo")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="what is scored (default: test)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the scores")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="file for the regression's predictions")
    options = parser.parse_args(arguments)
    scores, predictions = run(options.root, options.split)
    if options.csv:
        write_whole(options.csv, predictions_table(predictions).encode())
    if options.json:
        write_json(options.json, scores)
    print(table(scores))


if __name__ == "__main__":
    start(main)
