"""One epoch of training, one pass of evaluation, and the metrics."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
)
from torch import Tensor, nn

from utils import UserError

TOP = 5  # predictions of which one has to be right, for the second accuracy
CLASSES_SHOWN = 20  # of more, a table by class and a confusion matrix do not fit on a screen
Batch = dict[str, Any]  # tensors, and `skipped`
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Predictions(NamedTuple):
    """What an evaluation saw: sample indices (n,), labels (n,) and logits in float32 (n, classes), on the CPU."""

    indices: Tensor
    labels: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Precision:
    """Where and how the forward pass is computed; losses and metrics are float32.

    Attributes:
        amp_dtype: of autocast; float32 is without it.
        memory_format: of the images.
    """

    device: torch.device
    amp_dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype != torch.float32)

    def inputs(self, batch: Batch) -> list[Tensor]:
        """What the model is called with: images and, if there are any, word ids and mask, on the device, and topics.

        Topics stay on the CPU, where their groups are counted without waiting for a GPU.
        """
        images = batch["image"].to(self.device, non_blocking=True, memory_format=self.memory_format)
        texts = [batch[name].to(self.device, non_blocking=True) for name in ("word_ids", "word_mask") if name in batch]
        topics = [batch["topics"]] if "topics" in batch else []
        return [images, *texts, *topics]


@dataclass
class Stepper:
    """How batches become steps of the optimizer.

    Attributes:
        scaler: scales the loss for float16; it does nothing if it is not enabled.
        accumulate: batches a step; their gradient is that of the mean over them, as one large batch would give.
        clip_grad: largest norm of the gradient, at any precision.
        mixup: Mixup or CutMix of images and targets.
        after_step: called after each step with the number of the epoch's batches that are done.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    accumulate: int = 1
    clip_grad: float | None = None
    mixup: Mix | None = None
    after_step: Callable[[int], None] = lambda batches_done: None

    def step(self, model: nn.Module) -> None:
        """One step with the gradients at hand, which are cleared."""
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def train_one_epoch(
    model: Any,
    criterion: nn.Module,
    batches: Iterable[Batch],
    stepper: Stepper,
    precision: Precision,
    losses: "LossRecord",
    *,
    num_batches: int,
    first_batch: int = 0,
) -> None:
    """Trains on the batches of an epoch from `first_batch` to the last of `num_batches`.

    Processes exchange the gradient once a step; the last step takes what is left of the batches.

    Args:
        losses: takes the loss of each batch.

    Raises:
        UserError: a loss that is not finite; the message names the batch.
    """
    model.train()
    for number, batch in enumerate(batches, start=first_batch):
        step_start = number // stepper.accumulate * stepper.accumulate
        step_size = min(stepper.accumulate, num_batches - step_start)
        is_last = number + 1 == step_start + step_size
        inputs = precision.inputs(batch)
        targets = batch.get("vote_shares", batch["label"]).to(precision.device, non_blocking=True)
        if stepper.mixup is not None:
            inputs[0], targets = stepper.mixup(inputs[0], targets)
        with nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync():
            with precision.autocast():
                logits = model(*inputs)
            loss = criterion(logits.float(), targets)
            losses.add(loss.detach(), batch["index"])
            stepper.scaler.scale(loss / step_size).backward()
        if is_last:
            stepper.step(model)
            stepper.after_step(number + 1)
    losses.check()


class LossRecord:
    """Keeps the losses of an epoch and checks them in groups, since each look at a CUDA loss waits for the device.

    Args:
        sample_names: what to call sample i in an error.
        check_every: batches from one look to the next.
        values: the losses of the epoch's batches so far.
    """

    def __init__(self, sample_names: Sequence[Any] = (), *, check_every: int = 1, values: Sequence[float] = ()):
        self.sample_names = sample_names
        self.check_every = check_every
        self.values = list(values)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, indices: Tensor) -> None:
        """Notes the loss of a batch and the indices of its samples."""
        self.pending.append((loss, indices))
        if len(self.pending) >= self.check_every:
            self.check()

    def check(self) -> None:
        """Fetches the losses noted since the last look; raises UserError for one that is not finite."""
        if not self.pending:
            return
        values = torch.stack([loss for loss, _ in self.pending]).tolist()
        for value, (_, indices) in zip(values, self.pending, strict=True):
            if not math.isfinite(value):
                names = [str(self.sample_names[i]) if self.sample_names else str(i) for i in indices.tolist()]
                raise UserError(
                    f"batch {len(self.values)} of the epoch: the loss is {value}, expected a finite number; "
                    f"lower --lr or use --amp-dtype float32; the batch: {', '.join(names)}"
                )
            self.values.append(value)
        self.pending.clear()

    def mean(self) -> float:
        """The mean loss of all batches."""
        self.check()
        return sum(self.values) / len(self.values)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: Precision,
    *,
    num_classes: int,
    text_features: Callable[[Tensor], Tensor] | None = None,
) -> Predictions:
    """Runs the model in evaluation mode over the batches, which may be none, or have no readable image.

    Args:
        text_features: gives the text encoder's features of samples by their indices, in place of their word ids.
    """
    model.eval()
    indices, labels = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    logits = [torch.empty(0, num_classes)]
    for batch in batches:
        if "image" not in batch:
            continue
        with precision.autocast():
            inputs = precision.inputs(batch)
            if text_features is None:
                output = model(*inputs)
            else:
                topics = {"topics": inputs[-1]} if "topics" in batch else {}
                output = model(inputs[0], text_features=text_features(batch["index"]), **topics)
        indices.append(batch["index"])
        labels.append(batch["label"])
        logits.append(output.float().cpu())
    predictions = Predictions(torch.cat(indices), torch.cat(labels), torch.cat(logits))
    wrong = predictions.indices[~predictions.logits.isfinite().all(dim=1)]
    if len(wrong):
        raise UserError(
            f"sample {int(wrong[0])} and {len(wrong) - 1} more: the logits are not finite numbers, expected such; are "
            "the weights a trained model's? --amp-dtype float32 may help"
        )
    return predictions


class TextFeatures:
    """The text encoder's features of a split's distinct texts, each encoded once in an evaluation, when first needed.

    The texts are encoded in groups that are the same whatever samples come first, so that features, and with them the
    logits, do not depend on the number of processes, not even in the last bit.
    """

    def __init__(self, model: Any, dataset: Any, group_size: int):
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


def merge_predictions(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of all processes in the order of the samples, each sample once."""
    merged = Predictions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    order = merged.indices.argsort()
    return Predictions(*(tensor[order] for tensor in merged))


def compute_metrics(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """Logits (samples, classes) and labels (samples,) to top-1 and top-5 accuracy in percent, loss, figures by class.

    Precision, recall, F1 and mean average precision are shares from 0 to 1, 0 if undefined; the confusion matrix has
    true classes as rows.
    """
    predictions = logits.argmax(dim=1)
    best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices  # (samples, 5), or fewer if there are fewer classes
    truth, guess = labels.numpy(), predictions.numpy()
    classes = np.arange(len(class_names))
    by_class = precision_recall_fscore_support(truth, guess, labels=classes, zero_division=0)
    names = ("precision", "recall", "f1")
    metrics: dict[str, Any] = {
        "acc1": 100 * float(accuracy_score(truth, guess)),
        "acc5": 100 * (best == labels[:, None]).any(dim=1).double().mean().item(),
        "correct": int((predictions == labels).sum()),
        "samples": len(labels),
        "loss": F.cross_entropy(logits.float(), labels).item(),
        "per_class": {
            name: {
                **{figure: float(by_class[i][number]) for i, figure in enumerate(names)},
                "samples": int(by_class[3][number]),
            }
            for number, name in enumerate(class_names)
        },
        "confusion_matrix": confusion_matrix(truth, guess, labels=classes).tolist(),
        "mean_average_precision": mean_average_precision(logits.double().softmax(dim=1).numpy(), truth),
    }
    for average in ("macro", "weighted"):
        means = precision_recall_fscore_support(truth, guess, labels=classes, average=average, zero_division=0)
        metrics[average] = {figure: float(means[i]) for i, figure in enumerate(names)}
    return metrics


def compare_with_votes(logits: Tensor, vote_shares: Tensor) -> dict[str, float]:
    """Logits and shares of the annotators' votes, both (samples, classes), to what the predictions are worth to them.

    `expected_accuracy`, in percent: how often a prediction is the vote of an annotator, who is drawn by chance.
    """
    predictions = logits.argmax(dim=1, keepdim=True)
    return {
        "cross_entropy": F.cross_entropy(logits.float(), vote_shares).item(),
        "expected_accuracy": 100 * vote_shares.gather(1, predictions).mean().item(),
    }


def mean_average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that occur of the area under precision and recall, each class against the others."""
    occurring = np.unique(labels)
    return float(np.mean([average_precision_score(labels == one, probabilities[:, one]) for one in occurring]))


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics as a table of text; of many classes the means alone."""
    few = len(metrics["per_class"]) <= CLASSES_SHOWN
    lines = [f"{'class' if few else '':<14}{'precision':>10}{'recall':>10}{'F1':>10}{'samples':>10}"]
    for name, row in metrics["per_class"].items() if few else ():
        lines.append(f"{name:<14}{row['precision']:>10.4f}{row['recall']:>10.4f}{row['f1']:>10.4f}{row['samples']:>10}")
    for average in ("macro", "weighted"):
        row = metrics[average]
        lines.append(f"{average:<14}{row['precision']:>10.4f}{row['recall']:>10.4f}{row['f1']:>10.4f}")
    if few:
        lines.append("confusion matrix (rows: true class, columns: predicted, in the order above)")
        width = len(str(torch.tensor(metrics["confusion_matrix"]).max().item())) + 2
        lines += ["".join(f"{count:>{width}}" for count in row) for row in metrics["confusion_matrix"]]
    lines.append(
        f"top-1 {metrics['acc1']:.2f} % ({metrics['correct']} of {metrics['samples']}), loss {metrics['loss']:.4f}, "
        f"mean average precision {metrics['mean_average_precision']:.4f}"
    )
    if votes := metrics.get("votes"):
        lines.append(
            f"against the annotators' votes: expected accuracy {votes['expected_accuracy']:.2f} %, "
            f"cross-entropy {votes['cross_entropy']:.4f}"
        )
    lines.append(f"accuracy={metrics['acc1'] / 100:.6f}")  # this line and the next one as the published script
    lines.append(f"* Acc@1 {metrics['acc1']:.3f} Acc@5 {metrics['acc5']:.3f} loss {metrics['loss']:.3f}")
    return "\n".join(lines)
