"""The evaluation of a run's model on a split: figures, predictions, and the files that hold them."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from datasets import BadImage, StickerDataset
from engine import Batch, Predictions, compute_metrics, evaluate, format_metrics, merge_predictions
from readers.data_sets import DATA_SETS
from runtime.loader import read_batches
from runtime.monitor import StopSignals, Watchdog, progress
from runtime.setup import Run, amp_dtype, build_eval_loader, memory_format
from utils import (
    Interrupted,
    UserError,
    failing_together,
    gather,
    largest,
    make_writable_folder,
    print0,
    printable,
    shown,
    write_json,
    write_whole,
)

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
    """What an evaluation found: the figures, the predictions in the order of the samples, and what was not scored."""

    metrics: dict[str, Any]
    predictions: Predictions
    not_scored: list[dict[str, str]]


class TextFeatures:
    """The text encoder's features of a split's distinct texts, each encoded once in an evaluation, when first needed.

    The texts are encoded in groups that are the same whatever samples come first, so that features, and with them the
    logits, do not depend on the number of processes, not even in the last bit.
    """

    def __init__(self, model: nn.Module, dataset: StickerDataset, group_size: int):
        self.model, self.dataset, self.group_size = model, dataset, group_size
        self.device = next(model.parameters()).device
        self.groups: dict[int, Tensor] = {}  # (texts of the group, 30, width)

    def of(self, indices: Tensor) -> Tensor:
        """Features (B, 30, width) of samples (B,)."""
        rows = self.dataset.rows[indices].tolist()
        return torch.stack([self._group(row // self.group_size)[row % self.group_size] for row in rows])

    def _group(self, number: int) -> Tensor:
        if number not in self.groups:
            start = number * self.group_size
            words = self.dataset.words[start : start + self.group_size].to(self.device)  # (texts, 2, 30)
            self.groups[number] = self.model.encode_text(words[:, 0], words[:, 1])
        return self.groups[number]


def measure(run: Run, model: nn.Module, split: str, *, watchdog: Watchdog, stop: StopSignals) -> Evaluation:
    """Evaluates the model on a split, each sample once, and gives the result to every process.

    Raises:
        Interrupted: a signal came; the evaluation is to be done again.
    """
    options, processes, dataset = run.options, run.processes, run.data[split]
    loader = build_eval_loader(options, processes, dataset)
    skipped: dict[int, BadImage] = {}
    rounds = largest(len(loader))
    batches = until_stopped(watchdog.watched(read_batches(loader), split), rounds, stop)
    predictions = evaluate(
        model,
        noting_skipped(progress(batches, total=len(loader), title=split, every=options.log_every), skipped),
        device=processes.device,
        num_classes=len(dataset.class_names),
        amp_dtype=amp_dtype(options, processes.device),
        memory_format=memory_format(options),
        text_features=TextFeatures(model, dataset, options.batch_size).of if dataset.words is not None else None,
    )
    if options.dist_eval:
        parts, skipped_parts = zip(*gather((predictions, skipped)), strict=True)
        predictions = merge_predictions(parts)
        skipped = {index: image for part in skipped_parts for index, image in part.items()}
    if not len(predictions.labels):
        raise UserError(f"{split}: none of its {len(dataset)} images can be read: tools/check_dataset.py says why")
    metrics = compute_metrics(predictions.logits, predictions.labels, dataset.class_names)
    not_scored = [{"image": skipped[index].path, "reason": skipped[index].reason} for index in sorted(skipped)]
    if not_scored:
        print0(f"{split}: {len(not_scored)} of {len(dataset)} images were not scored, as they cannot be read")
    return Evaluation(metrics, predictions, not_scored)


def until_stopped(batches: Iterable[Batch], rounds: int, stop: StopSignals) -> Iterator[Batch]:
    """Passes the batches on; before each the processes agree whether one of them is to stop.

    Args:
        rounds: how many batches the process with the most has; the others take part in all rounds.

    Raises:
        Interrupted: on every process, where one got a signal.
    """
    iterator = iter(batches)
    for _ in range(rounds):
        if exit_code := largest(stop.exit_code):
            raise Interrupted(exit_code)
        batch = next(iterator, None)
        if batch is not None:
            yield batch


def noting_skipped(batches: Iterable[Batch], skipped: dict[int, BadImage]) -> Iterator[Batch]:
    """Passes batches on and notes, by their index, the images that were left out or replaced."""
    for batch in batches:
        skipped.update((image.index, image) for image in batch["skipped"])
        yield batch


def report(run: Run, evaluation: Evaluation, split: str, checkpoint: Path, folder: Path) -> None:
    """Prints the figures of a checkpoint on a split and writes them, and its predictions, into a folder."""
    print0(f"{split} of {run.options.dataset}, {checkpoint}:\n{format_metrics(evaluation.metrics)}")
    with failing_together():
        if run.processes.is_main:
            path = folder / f"{checkpoint.stem}_{split}.json"
            figures = {"checkpoint": checkpoint.name, "split": split, **evaluation.metrics}
            write_json(path, {**figures, "not_scored": evaluation.not_scored, "run": run.facts})
            write_whole(path.with_suffix(".csv"), predictions_table(named(run, evaluation.predictions, split)).encode())
            print0(f"written to {path}, the predictions to {path.with_suffix('.csv')}")


def named(run: Run, predictions: Predictions, split: str) -> PredictionFile:
    """The predictions with what the data set knows of them: images below its folder, and the names of the classes."""
    dataset = run.data[split]
    root = DATA_SETS[run.options.dataset].images_root(run.options.data_path)
    return PredictionFile(
        images=[os.path.relpath(dataset.samples[index].path, root) for index in predictions.indices.tolist()],
        labels=predictions.labels.numpy(),
        predictions=predictions.logits.argmax(dim=1).numpy(),
        probabilities=predictions.logits.double().softmax(dim=1).numpy(),
        class_names=tuple(dataset.class_names),
    )


def evaluate_checkpoint(run: Run, path: str | Path) -> None:
    """The figures of the model that came from a checkpoint, written beside it or into --output-dir."""
    options, processes = run.options, run.processes
    is_address = "://" in str(path)
    checkpoint = Path(urlsplit(path).path if is_address else path)
    folder = Path(options.output_dir) if options.output_dir else checkpoint.parent
    with failing_together():
        if is_address and not options.output_dir:
            raise UserError("--output-dir is missing: name the folder for the figures of a checkpoint that is fetched")
        make_writable_folder(folder)
    group = {"rank": processes.rank, "world_size": processes.world_size, "store": processes.store}
    with StopSignals(speaks=False) as stop, Watchdog(options.timeout, **group) as watchdog:
        evaluation = measure(run, run.model, options.eval_split, watchdog=watchdog, stop=stop)
    report(run, evaluation, options.eval_split, checkpoint, folder)
