"""The predictions that an evaluation writes, `<checkpoint>_<split>.csv`, and reading them again."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import UserError
from utils.messages import printable, shown

COLUMNS = ("image", "label", "prediction")  # then `p_<class>` for each class


class PredictionFile(NamedTuple):
    """Images by name with labels (n,), predictions (n,) and probabilities (n, classes), counted as `class_names`."""

    images: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]


def predictions_table(found: PredictionFile) -> str:
    """The file's content: a line of CSV for each image."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"p_{name}" for name in found.class_names)])
    names = found.class_names
    columns = (found.images, found.labels.tolist(), found.predictions.tolist(), found.probabilities.tolist())
    for image, label, prediction, row in zip(*columns, strict=True):
        table.writerow([image, names[label], names[prediction], *(f"{p:.9g}" for p in row)])
    return text.getvalue()


def read_predictions(path: str | Path) -> PredictionFile:
    """Reads a file of predictions.

    Raises:
        UserError: a file that is missing, has no lines, or was not written by an evaluation.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        names = tuple(name.removeprefix("p_") for name in header[len(COLUMNS) :])
        if tuple(header[: len(COLUMNS)]) != COLUMNS or not names or not rows:
            raise ValueError(f"the header {shown(header)} and {len(rows)} lines")
        number = {name: index for index, name in enumerate(names)}
        labels, predictions = (np.array([number[row[column]] for row in rows]) for column in (1, 2))
        probabilities = np.array([[float(value) for value in row[len(COLUMNS) :]] for row in rows])
        if probabilities.shape != (len(rows), len(names)) or not np.isfinite(probabilities).all():
            raise ValueError(f"probabilities of the shape {probabilities.shape}, or not finite")
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {printable(error)}"
        raise UserError(
            f"{printable(path)}: expected predictions as an evaluation writes them (image, label, prediction, p_<class>"
            f" ...), found {reason}: name the CSV file beside a checkpoint, or evaluate it with --eval"
        ) from error
    return PredictionFile([row[0] for row in rows], labels, predictions, probabilities, names)
