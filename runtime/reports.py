"""What a run tells of an evaluation and at its end: figures, predictions, pictures, model card, and their files."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from datasets import StickerDataset
from engine import Predictions, compute_metrics, format_metrics
from inference.predictor import Predictor
from runtime.boards import Board
from runtime.model_card import write_card_beside
from runtime.progress import all_speeds
from runtime.setup import Run
from utils import (
    UserError,
    escaped,
    failing_together,
    gather,
    print0,
    printable,
    shown,
    unescaped,
    write_json,
    write_whole,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runtime.state import Training

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
    """The file's content: a line of CSV for each image; names are stored as `utils.escaped` has them."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"p_{name}" for name in found.class_names)])
    names = found.class_names
    columns = (found.images, found.labels.tolist(), found.predictions.tolist(), found.probabilities.tolist())
    for image, label, prediction, row in zip(*columns, strict=True):
        table.writerow([image, names[label], names[prediction], *(f"{p:.9g}" for p in row)])
    return escaped(text.getvalue())


def read_predictions(path: str | Path) -> PredictionFile:
    """Reads a file of predictions.

    Raises:
        UserError: a file that is missing, has no lines, or was not written by an evaluation.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header, *rows = ([unescaped(field) for field in row] for row in csv.reader(file))
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
    """What an evaluation gave: the figures, the predictions in the order of the samples, and what was not scored.

    `context` is what the predictions depend on beside the images, of a network that reads topics.
    """

    metrics: dict[str, Any]
    predictions: Predictions
    not_scored: list[dict[str, str]]
    context: dict[str, Any] | None = None


def evaluation_context(run: Run, split: str, predictions: Predictions) -> dict[str, Any] | None:
    """What the predictions of a network that reads topics depend on; None for another network."""
    options, dataset, size = run.options, run.data[split], run.eval_batch_size
    if not run.network.reads_topics:
        return None
    topics, company = dataset.topics, 0
    if topics is not None:
        groups = Counter((index // size, topics[index]) for index in predictions.indices.tolist())
        company = sum(count for count in groups.values() if count > 1)
    lists = f", --annotations {options.annotations}" if options.annotations else ""
    context = {
        "mode": options.context,
        "batch_size": size,
        "list": f"{split} of {options.dataset}, {options.data_path}{lists}, in the order of the list",
        "processes": run.processes.world_size,
        "with_others_of_their_topic": company,
        "left_out": len(dataset) - len(predictions.indices),
    }
    return context | {"statement": context_statement(context)}


def context_statement(context: dict[str, Any]) -> str:
    """What stands beside the figures."""
    if context["mode"] == "alone":
        return "alone: each prediction depends on its own sticker only"
    return (
        f"batch: predictions look at other images of the split; {context['with_others_of_their_topic']} stickers had "
        f"another of their topic beside them in batches of {context['batch_size']}, {context['list']}, "
        f"{context['processes']} processes, {context['left_out']} images left out, which changes the others"
    )


def log_entry(training: "Training", split: str, evaluation: Evaluation, speed: dict[str, float]) -> dict[str, Any]:
    """The log's entry on the epoch that was trained and evaluated; all processes take part.

    `speed` is this process's, of what was trained since the start or the last resume.
    """
    metrics, rate = evaluation.metrics, training.optimizer.param_groups[0]["lr"]
    parts = gather((training.losses.mean(), list(training.skipped.values()), speed))
    entry = {
        "epoch": training.epoch,
        "lr": rate,
        "train_lr": rate,
        "train_loss": sum(loss for loss, *_ in parts) / len(parts),
        "train_seconds": round(training.seconds, 2),
        **all_speeds([speed for *_, speed in parts]),
        f"{split}_acc1": metrics["acc1"],
        f"{split}_acc5": metrics["acc5"],
        f"{split}_loss": metrics["loss"],
        f"{split}_macro_f1": metrics["macro"]["f1"],
        **{f"{split}_votes_{name}": value for name, value in metrics.get("votes", {}).items()},
        "n_parameters": sum(parameter.numel() for parameter in training.model.parameters()),
    }
    bad = {image.path for _, images, _ in parts for image in images}
    if bad:
        entry["bad_images"] = sorted(bad)
        print0(f"epoch {training.epoch}: {len(bad)} images of train cannot be read and were replaced by others")
    tell_blank_images(training.run.data["train"], "train", training.run.blank_images)
    if evaluation.not_scored:
        entry[f"{split}_not_scored"] = len(evaluation.not_scored)
    return entry


def report(run: Run, evaluation: Evaluation, split: str, checkpoint: Path, folder: Path | None) -> None:
    """Prints the figures of a checkpoint on a split, and writes them and its predictions into a folder, if any."""
    if folder is None:
        print0(f"{split} of {run.options.dataset}:\n{format_metrics(evaluation.metrics)}")
        return
    path = folder / f"{checkpoint.stem}_{split}.json"
    without = without_near_duplicates(run, evaluation.predictions, split)
    with failing_together():
        if run.processes.is_main:
            figures = {"checkpoint": checkpoint.name, "split": split, **evaluation.metrics, **without}
            if evaluation.context:
                figures["context"] = evaluation.context
            write_json(path, {**figures, "not_scored": evaluation.not_scored, "run": run.facts})
            table = predictions_table(named(run, evaluation.predictions, split))
            write_whole(path.with_suffix(".csv"), table.encode())
    print0(f"{split} of {run.options.dataset}, {checkpoint}:\n{format_metrics(evaluation.metrics)}")
    for metrics in without.values():
        said = f"without {metrics['left_out']:,} near-duplicates of train"
        print0(f"{split} of {run.options.dataset}, {said}:\n{format_metrics(metrics)}")
    if evaluation.context:
        print0(f"context {evaluation.context['statement']}")
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


def tell_blank_images(dataset: StickerDataset, split: str, told: dict[str, int]) -> None:
    """Says how many of the images read so far are of one colour, if more than were told; all processes take part.

    Args:
        told: how many were told by split.
    """
    blank = set().union(*gather(dataset.blank.nonzero().flatten().tolist()))
    if len(blank) > told.get(split, 0):
        told[split] = len(blank)
        print0(
            f"warning: images of one colour (on white), in which nothing is seen: {len(blank):,} of {split}, such as "
            f"{printable(dataset.samples[min(blank)].path)}; tools/check_dataset.py lists them"
        )


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
    of_training = {"input_size", "input_statistics", "dataset", "protocol", "best_metric", "image_reading"}
    settings = {name: getattr(options, name) for name in {*network.settings, *of_training}}
    names, device = run.data[split].class_names, run.processes.device
    return Predictor(network, model, settings, names, run.start.tokenizer, device)


def finish_report(
    run: Run, model: nn.Module, history: list[dict[str, Any]], evaluation: Evaluation, path: Path, boards: list[Board]
) -> None:
    """What a training leaves on process 0 beside its figures on test: pictures and the card of a checkpoint.

    A training that is done does not fail for any of them: what cannot be made is a warning, and the others are made.
    """
    predictor = predictor_of(run, model, "test")
    with warning_of("model card"):
        print0(f"model card: {write_card_beside(predictor, path)}")
    if run.options.figures or boards:
        draw_figures(run, predictor, history, {"split": "test", **evaluation.metrics}, boards)


@contextmanager
def warning_of(what: str) -> Iterator[None]:
    """An error inside becomes a warning that something was not made."""
    try:
        yield
    except UserError as error:
        print0(f"warning: no {what}: {error}")
    except Exception as error:
        print0(f"warning: no {what}: {type(error).__name__}: {printable(error)}")


def draw_figures(
    run: Run, predictor: Predictor, history: list[dict[str, Any]], metrics: dict[str, Any], boards: list[Board]
) -> None:
    """The training curves and the confusion matrix on test, as PNG; with what the network looked at, for the boards."""
    with warning_of("figures"):
        from runtime import figures  # matplotlib takes a second to import, which a run without figures need not spend

        folder, epoch = Path(run.options.output_dir), history[-1]["epoch"]
        draw = {"curves": partial(figures.curves, history)}
        draw["confusion_matrix"] = partial(figures.confusion_matrix, metrics)
        for name, draw_one in draw.items():
            with warning_of(name):
                figure = draw_one()
                for board in boards:
                    board.figure(name, figure, epoch)
                figures.save_figure(figure, [folder / f"{name}.png"] if run.options.figures else [])
        for name, figure in overlays(run, predictor) if boards else ():
            for board in boards:
                board.figure(name, figure, epoch)


def overlays(run: Run, predictor: Predictor) -> Iterator[tuple[str, "Figure"]]:
    """What the network looked at in the first images of test that can be read, as figures with names."""
    from inference.explain import explain
    from inference.overlay import explanation_figure

    for sample in run.data["test"].samples[:SAMPLES_SHOWN] if predictor.network.selects_patches else ():
        with suppress(UserError):
            figure = explanation_figure(explain(predictor, sample.path, sample.text))
            yield f"looked at/{printable(sample.path.name)}", figure
