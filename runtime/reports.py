"""What a run tells of an evaluation and at its end: figures, predictions, pictures, model card, and their files."""

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from engine import Predictions, compute_metrics, format_metrics
from inference.predictor import Predictor
from runtime.boards import Board
from runtime.model_card import write_card_beside
from runtime.setup import Run
from utils import UserError, failing_together, print0, printable, shown, write_json, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES_SHOWN = 4  # images of test whose overlays a board gets
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


class Evaluation(NamedTuple):
    """What an evaluation gave: the figures, the predictions in the order of the samples, and what was not scored."""

    metrics: dict[str, Any]
    predictions: Predictions
    not_scored: list[dict[str, str]]


def report(run: Run, evaluation: Evaluation, split: str, checkpoint: Path, folder: Path) -> None:
    """Writes the figures of a checkpoint on a split and its predictions into a folder, and prints the figures."""
    path = folder / f"{checkpoint.stem}_{split}.json"
    without = without_near_duplicates(run, evaluation.predictions, split)
    with failing_together():
        if run.processes.is_main:
            figures = {"checkpoint": checkpoint.name, "split": split, **evaluation.metrics, **without}
            write_json(path, {**figures, "not_scored": evaluation.not_scored, "run": run.facts})
            table = predictions_table(named(run, evaluation.predictions, split))
            write_whole(path.with_suffix(".csv"), table.encode())
    print0(f"{split} of {run.options.dataset}, {checkpoint}:\n{format_metrics(evaluation.metrics)}")
    for metrics in without.values():
        said = f"without {metrics['left_out']:,} near-duplicates of train"
        print0(f"{split} of {run.options.dataset}, {said}:\n{format_metrics(metrics)}")
    print0(f"written to {path}, the predictions to {path.with_suffix('.csv')}")


def without_near_duplicates(run: Run, predictions: Predictions, split: str) -> dict[str, dict[str, Any]]:
    """The figures without the images that have a twin in train, by their name in the file; {} if not asked for."""
    if not run.options.without_near_duplicates:
        return {}
    kept = ~torch.isin(predictions.indices, torch.tensor(run.near_duplicates(split), dtype=torch.long))
    if not kept.any():
        raise UserError(f"{split}: none of its images without a twin in train can be read")
    metrics = compute_metrics(predictions.logits[kept], predictions.labels[kept], run.data[split].class_names)
    left_out = int((~kept).sum())
    return {"without_near_duplicates": {"list": run.options.without_near_duplicates, "left_out": left_out, **metrics}}


def named(run: Run, predictions: Predictions, split: str) -> PredictionFile:
    """The predictions with what the data set knows of them: images below its folder, and the names of the classes."""
    dataset = run.data[split]
    names = run.image_names(split)
    return PredictionFile(
        images=[names[index] for index in predictions.indices.tolist()],
        labels=predictions.labels.numpy(),
        predictions=predictions.logits.argmax(dim=1).numpy(),
        probabilities=predictions.logits.double().softmax(dim=1).numpy(),
        class_names=tuple(dataset.class_names),
    )


def predictor_of(run: Run, model: nn.Module, split: str) -> Predictor:
    """The run's network as a predictor."""
    options, network = run.options, run.network
    kept = {*network.settings, "input_size", "input_statistics", "dataset", "protocol"}
    settings = {name: getattr(options, name) for name in kept}
    names, device = run.data[split].class_names, run.processes.device
    return Predictor(network, model, settings, names, run.start.tokenizer, device)


def finish_report(
    run: Run, model: nn.Module, history: list[dict[str, Any]], evaluation: Evaluation, path: Path, boards: list[Board]
) -> None:
    """What a training leaves on process 0 beside its figures on test: pictures and the card of a checkpoint.

    A training that is done does not fail for any of them: what cannot be made is a warning.
    """
    predictor = predictor_of(run, model, "test")
    try:
        draw_figures(run, predictor, history, {"split": "test", **evaluation.metrics}, boards)
    except Exception as error:
        print0(f"warning: no figures: {type(error).__name__}: {printable(error)}")
    try:
        print0(f"model card: {write_card_beside(predictor, path)}")
    except UserError as error:
        print0(f"warning: no model card: {error}")


def draw_figures(
    run: Run, predictor: Predictor, history: list[dict[str, Any]], metrics: dict[str, Any], boards: list[Board]
) -> None:
    """The training curves and the confusion matrix on test, as PNG; with what the network looked at, for the boards."""
    if not (run.options.figures or boards):
        return
    from runtime import figures  # matplotlib takes a second to import, which a run without figures need not spend

    folder, epoch = Path(run.options.output_dir), history[-1]["epoch"]
    drawn = {"curves": figures.curves(history), "confusion_matrix": figures.confusion_matrix(metrics)}
    for board in boards:
        for name, figure in [*drawn.items(), *overlays(run, predictor)]:
            board.figure(name, figure, epoch)
    for name, figure in drawn.items():
        figures.save_figure(figure, [folder / f"{name}.png"] if run.options.figures else [])


def overlays(run: Run, predictor: Predictor) -> Iterator[tuple[str, "Figure"]]:
    """What the network looked at in the first images of test that can be read, as figures with names."""
    from inference.explain import explain
    from inference.overlay import explanation_figure

    for sample in run.data["test"].samples[:SAMPLES_SHOWN] if predictor.network.selects_patches else ():
        with suppress(UserError):
            yield f"looked at/{sample.path.name}", explanation_figure(explain(predictor, sample.path, sample.text))
