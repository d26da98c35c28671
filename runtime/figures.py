"""Figures of a run, drawn with matplotlib. Shades and markers differ, so that they are readable without colours."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from inference.lettering import label, lettering
from utils import write_whole

matplotlib.use("Agg")

SHADES = "cividis"
MARKS = "osv^D*PX<>"
BINS = 10  # of the reliability diagram
EDGE = 0.04  # of it around 0 and 1, so that marks and bars there are whole
MANY_CLASSES = 20  # a figure does not name more


def save_figure(figure: Figure, paths: Sequence[Path]) -> Sequence[Path]:
    """Writes a figure to each path, in the format of its suffix and each file as a whole, and closes it."""
    for path in paths:
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=150)
        write_whole(path, content.getvalue())
    plt.close(figure)
    return paths


def curves(log: Sequence[dict[str, Any]]) -> Figure:
    """Loss, accuracy and learning rate over the epochs, from the entries of a log."""
    epochs = [entry["epoch"] for entry in log]
    split = "val" if log and "val_acc1" in log[0] else "test"
    mark = "o" if len(log) == 1 else ""  # a line needs two points
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    axes[0].plot(epochs, [entry["train_loss"] for entry in log], marker=mark, label="train (smoothed labels)")
    axes[0].plot(epochs, [entry[f"{split}_loss"] for entry in log], "--", marker=mark, label=split)
    axes[0].set(xlabel="epoch", ylabel="cross-entropy")
    axes[0].legend()
    axes[1].plot(epochs, [entry[f"{split}_acc1"] for entry in log], marker=mark)
    axes[1].set(xlabel="epoch", ylabel=f"{split} top-1, %")
    axes[2].plot(epochs, [entry["lr"] for entry in log], marker=mark)
    axes[2].set(xlabel="epoch", ylabel="learning rate")
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if not log:
            say_nothing(axis, "no epochs")
    return figure


def say_nothing(axis: Axes, text: str) -> None:
    """Says in the middle of empty axes what there is none of."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="grey")


def confusion_matrix(metrics: dict[str, Any]) -> Figure:
    """The confusion matrix: the shade is the share of the true class, the numbers are counts and percentages."""
    counts = np.array(metrics["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with lettering(metrics["per_class"]):
        return _confusion_matrix(metrics, counts, shares, [label(name) for name in metrics["per_class"]])


def _confusion_matrix(metrics: dict[str, Any], counts: np.ndarray, shares: np.ndarray, names: list[str]) -> Figure:
    """The figure, with the fonts as they are set."""
    figure, axis = plt.subplots(figsize=(6.4, 5.8), layout="constrained")
    image = axis.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    if len(names) <= MANY_CLASSES:
        for row, column in np.ndindex(*counts.shape):
            shade = "black" if shares[row, column] > 0.5 else "white"
            text = f"{counts[row, column]}\n{100 * shares[row, column]:.0f} %" if counts[row, column] else "0"
            axis.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true", title=f"{metrics['split']}: {metrics['acc1']:.2f} % top-1")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def class_bars(metrics: dict[str, Any]) -> Figure:
    """Precision, recall and F1 of each class, with its number of samples."""
    with lettering(metrics["per_class"]):
        return _class_bars(metrics, metrics["per_class"])


def _class_bars(metrics: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Figure:
    """The figure, with the fonts as they are set."""
    figure, axis = plt.subplots(figsize=(max(6.4, 0.9 * len(rows)), 3.6), layout="constrained")
    places = np.arange(len(rows))
    for number, (name, hatch) in enumerate((("precision", ""), ("recall", "//"), ("f1", ".."))):
        values = [row[name] for row in rows.values()]
        shade = plt.get_cmap(SHADES)(0.15 + 0.35 * number)
        axis.bar(places + 0.27 * (number - 1), values, 0.27, label=name, color=shade, hatch=hatch, edgecolor="white")
    axis.set_xticks(places, [f"{label(name)}\n{row['samples']}" for name, row in rows.items()])
    axis.set(ylim=(0, 1), title=f"{metrics['split']}: metrics by class, with the number of samples")
    axis.legend(ncols=3, loc="lower center")
    return figure


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[float, list[tuple[float, float, int]]]:
    """The expected calibration error (Guo et al., ICML 2017).

    Args:
        confidence: the largest probability of each sample (n,).
        correct: whether it belongs to the true class (n,).

    Returns:
        The error, 0 without samples, and for each bin with samples its mean confidence, its accuracy and its number of
        samples.
    """
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        (float(confidence[places == i].mean()), float(correct[places == i].mean()), int((places == i).sum()))
        for i in range(BINS)
        if (places == i).any()
    ]
    return sum(count * abs(sure - right) for sure, right, count in bins) / max(len(confidence), 1), bins


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Figure:
    """The reliability diagram: accuracy over confidence, and the number of samples in each bin."""
    error, bins = calibration(confidence, correct)
    sure, right, counts = zip(*bins, strict=True) if bins else ((), (), ())
    samples = "1 sample" if len(confidence) == 1 else f"{len(confidence):,} samples"
    figure, axes = plt.subplots(2, 1, figsize=(5, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained")
    axes[0].plot([0, 1], [0, 1], ":", color="grey", label="calibrated")
    axes[0].plot(sure, right, "o-", label="measured")
    title = f"expected calibration error {100 * error:.1f} %, {samples}" if bins else "no samples"
    axes[0].set(ylim=(-EDGE, 1 + EDGE), ylabel="accuracy", title=title)
    axes[0].legend()
    axes[1].bar(sure, counts, 0.8 / BINS)
    axes[1].set(xlim=(-EDGE, 1 + EDGE), xlabel="confidence", ylabel="samples")
    axes[1].yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def feature_map(points: np.ndarray, labels: Sequence[int], names: Sequence[str], title: str) -> Figure:
    """Points (n, 2) with a marker and a shade for each class."""
    with lettering(names):
        return _feature_map(points, np.array(labels), [label(name) for name in names], title)


def _feature_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """The figure, with the fonts as they are set."""
    figure, axis = plt.subplots(figsize=(7, 5.6), layout="constrained")
    handles = []
    for number in range(len(names)):
        chosen = points[labels == number]
        shade = plt.get_cmap("viridis")(number / max(len(names) - 1, 1))
        axis.scatter(
            chosen[:, 0], chosen[:, 1], s=26, marker=MARKS[number % len(MARKS)], color=shade, edgecolor="black", lw=0.4
        )
        handles.append(axis.scatter([], [], marker=MARKS[number % len(MARKS)], color=shade, edgecolor="black", lw=0.4))
    axis.set(xticks=[], yticks=[], title=title)
    if len(names) <= MANY_CLASSES:
        legend = axis.legend(handles, ["" for _ in names], fontsize=8)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)  # as a label, a name that begins with _ would be left out
    return figure


def mistake_sheet(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Figure:
    """Pictures with their titles, six in a row."""
    with lettering(titles):
        return _mistake_sheet(pictures, titles)


def _mistake_sheet(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Figure:
    """The figure, with the fonts as they are set."""
    columns = 6
    rows = max(-(-len(pictures) // columns), 1)
    figure, axes = plt.subplots(rows, columns, figsize=(2 * columns, 2.5 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture)
        axis.set_title("\n".join(map(label, title.split("\n"))), fontsize=8)
    if not pictures:
        say_nothing(axes.flat[0], "no mistakes")
    return figure
