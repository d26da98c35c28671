"""One epoch of training and one pass of evaluation."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errors import UserError

Batch = dict[str, Tensor]


class Predictions(NamedTuple):
    """What an evaluation saw: sample indices (n,), labels (n,) and logits in float32 (n, classes), on the CPU."""

    indices: Tensor
    labels: Tensor
    logits: Tensor


def model_inputs(batch: Batch, device: torch.device) -> list[Tensor]:
    """The tensors that the model is called with: images and, where there are any, word ids and mask."""
    names = ("image", "word_ids", "word_mask")
    return [batch[name].to(device, non_blocking=True) for name in names if name in batch]


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    scaler: torch.amp.GradScaler,
    amp_dtype: torch.dtype = torch.float32,
    clip_grad: float | None = None,
    mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    sample_names: Sequence[Any] = (),
) -> float:
    """Trains on the batches once, one optimizer step a batch; returns the mean loss.

    Args:
        scaler: scales the loss for float16; does nothing where it is not enabled.
        clip_grad: largest norm of the gradient, at any precision.
        sample_names: what to call sample i in an error.

    Raises:
        UserError: a loss that is not finite; the message names the batch.
    """
    model.train()
    losses = LossRecord(sample_names, check_every=1 if device.type == "cpu" else 50)
    for batch in batches:
        inputs = model_inputs(batch, device)
        targets = batch["label"].to(device, non_blocking=True)
        if mixup is not None:
            inputs[0], targets = mixup(inputs[0], targets)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype != torch.float32):
            logits = model(*inputs)
        loss = criterion(logits.float(), targets)
        losses.add(loss.detach(), batch["index"])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if clip_grad is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        scaler.step(optimizer)
        scaler.update()
    return losses.mean()


class LossRecord:
    """Keeps the losses of an epoch and checks them in groups, since each look at a CUDA loss waits for the device."""

    def __init__(self, sample_names: Sequence[Any], *, check_every: int):
        self.sample_names = sample_names
        self.check_every = check_every
        self.values: list[float] = []
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
                    f"step {len(self.values)} of the epoch: the loss is {value}, expected a finite number; "
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
    *,
    device: torch.device,
    num_classes: int,
    amp_dtype: torch.dtype = torch.float32,
) -> Predictions:
    """Runs the model in evaluation mode over the batches, which may be none."""
    model.eval()
    indices, labels = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    logits = [torch.empty(0, num_classes)]
    for batch in batches:
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype != torch.float32):
            output = model(*model_inputs(batch, device))
        indices.append(batch["index"])
        labels.append(batch["label"])
        logits.append(output.float().cpu())
    return Predictions(torch.cat(indices), torch.cat(labels), torch.cat(logits))


def merge_predictions(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of all processes in the order of the samples, each sample once."""
    merged = Predictions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    order = merged.indices.argsort()
    return Predictions(*(tensor[order] for tensor in merged))
