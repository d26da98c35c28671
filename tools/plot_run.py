"""Draws a run folder as pictures: training curves from log.txt, confusion matrix from the test figures.

    python tools/plot_run.py runs/demo

Writes curves.png and confusion_matrix.png into the folder, and prints the test figures beside the baselines' where
baselines_test.json is there (tools/baselines.py).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from errors import UserError

TEST_FILES = tuple(f"checkpoint{model}{which}_test.json" for which in ("_best", "") for model in ("", "_v", "_pvt"))
BASELINES = {"majority": "majority class", "hog": "HOG + logistic regression"}


def main(argv: list[str] | None = None) -> int:
    """Draws and compares; exit code 2 where the folder lacks a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of a run")
    folder = parser.parse_args(argv).folder
    try:
        log = read_log(folder / "log.txt")
        metrics = read_test_metrics(folder)
        plot_curves(log, folder / "curves.png")
        plot_confusion_matrix(metrics, folder / "confusion_matrix.png")
        print(f"pictures: {folder / 'curves.png'}, {folder / 'confusion_matrix.png'}")
        print(compare(metrics, folder / "baselines_test.json"))
    except UserError as error:
        print(f"plot_run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, one an epoch."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the output folder of a training")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_test_metrics(folder: Path) -> dict[str, Any]:
    """The test figures of the run: of its best checkpoint, else of its last."""
    for name in TEST_FILES:
        if (folder / name).is_file():
            return json.loads((folder / name).read_text(encoding="utf-8"))
    raise UserError(f"{folder}: lacks {TEST_FILES[0]}; run the evaluation (--eval) first")


def plot_curves(log: list[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs."""
    epochs = [entry["epoch"] for entry in log]
    split = "val" if "val_acc1" in log[0] else "test"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    axes[0].plot(epochs, [entry["train_loss"] for entry in log], label="train (smoothed labels)")
    axes[0].plot(epochs, [entry[f"{split}_loss"] for entry in log], "--", label=split)
    axes[0].set(xlabel="epoch", ylabel="cross-entropy")
    axes[0].legend()
    axes[1].plot(epochs, [entry[f"{split}_acc1"] for entry in log])
    axes[1].set(xlabel="epoch", ylabel=f"{split} top-1, %")
    axes[2].plot(epochs, [entry["lr"] for entry in log])
    axes[2].set(xlabel="epoch", ylabel="learning rate")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_confusion_matrix(metrics: dict[str, Any], path: Path) -> None:
    """The confusion matrix: shares of each true class as shade, counts as numbers."""
    counts = np.array(metrics["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = list(metrics["per_class"])
    figure, axis = plt.subplots(figsize=(5.6, 5.2), layout="constrained")
    image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        shade = "black" if shares[row, column] > 0.5 else "white"
        axis.text(column, row, counts[row, column], ha="center", va="center", color=shade)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true", title=f"{metrics['split']}: {metrics['acc1']:.2f} % top-1")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(metrics: dict[str, Any], baselines_file: Path) -> str:
    """The network's test figures beside the baselines', and whether it is better than they."""
    ours = (metrics["acc1"] / 100, metrics["macro"]["f1"])
    rows = {}
    if baselines_file.is_file():
        baselines = json.loads(baselines_file.read_text(encoding="utf-8"))
        for key, name in BASELINES.items():
            rows[name] = (baselines[key]["accuracy"], baselines[key]["macro_f1"])
    lines = [f"{'test':<28}{'accuracy %':>12}{'macro F1 %':>12}"]
    lines += [f"{name:<28}{100 * a:>12.2f}{100 * f1:>12.2f}" for name, (a, f1) in [*rows.items(), ("network", ours)]]
    better = [name for name, (accuracy, _) in rows.items() if accuracy >= ours[0]]
    lines += [f"The network is NOT better than {name}." for name in better]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
