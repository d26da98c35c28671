"""Optimizer, schedule, moving average, loss and Mixup of a run, from its options."""

from argparse import Namespace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from datasets import StickerDataset
from engine import Mix
from readers.optimizer_state import SMALLEST_NOISE
from utils import UserError, print0, printable

IMAGES_OF_LR = 512  # images a step that --lr is meant for
FUSED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")  # timm's names of PyTorch's own that have a fused form


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with smoothed targets, times the weight of the target before it is smoothed; the mean of a batch.

    With the `weight` of PyTorch's own, the smoothing mass would be weighted too: a frequent class would be learned as
    the rare ones that a part of its mass goes to.

    Args:
        weights: of the classes (classes,); None for 1 each.
    """

    def __init__(self, weights: Tensor | None = None, smoothing: float = 0.0):
        super().__init__()
        self.weights, self.smoothing = weights, smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, classes) and labels (B,), or shares of classes (B, classes), to the loss."""
        losses = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="none")  # (B,)
        if self.weights is not None:
            weights = self.weights.to(losses)
            losses = losses * (weights[targets] if targets.ndim == 1 else targets @ weights)
        return losses.mean()


def build_criterion(options: Namespace, dataset: StickerDataset) -> WeightedCrossEntropy:
    """The loss of a training on a data set; raises UserError for class weights that do not fit it."""
    return WeightedCrossEntropy(class_weights(options, dataset), options.smoothing)


def class_weights(options: Namespace, dataset: StickerDataset) -> Tensor | None:
    """The weights of the classes, which average 1 over the samples of train; None for 1 each.

    effective: the inverse of (1 - beta**n) / (1 - beta) for n samples (Class-Balanced Loss, CVPR 2019, equation 2).
    """
    asked, names = options.class_weights, dataset.class_names
    if asked == ["none"]:
        return None
    counts = count_classes(dataset, "--class-weights")
    if asked == ["balanced"]:
        weights = 1 / counts
    elif asked == ["effective"]:
        weights = (1 - options.beta) / (1 - options.beta**counts)
    elif len(asked) == len(names):
        weights = torch.tensor(asked, dtype=torch.float64)
    else:
        found = f"{len(asked)} for {len(names)} classes ({', '.join(map(printable, names))})"
        raise UserError(f"--class-weights: expected a number for each class, found {found}: give as many")
    targets = counts if dataset.vote_shares is None else dataset.vote_shares.double().sum(dim=0)
    weights = weights * targets.sum() / (targets * weights).sum()
    print0(f"class weights: {', '.join(f'{printable(n)} {w:.4g}' for n, w in zip(names, weights, strict=True))}")
    return weights


def count_classes(dataset: StickerDataset, flag: str) -> Tensor:
    """How many samples of each class a data set has, (classes,) in float64; raises UserError if a class has none."""
    counts = torch.bincount(torch.tensor(dataset.labels), minlength=len(dataset.class_names)).double()
    absent = [printable(name) for name, count in zip(dataset.class_names, counts, strict=True) if not count]
    if absent:
        raise UserError(f"{flag}: expected samples of each class in train, found none of {', '.join(absent)}")
    return counts


def build_mixup(options: Namespace, num_classes: int) -> Mix | None:
    """Mixup and CutMix, or None if both are off; `WeightedCrossEntropy` smooths the targets."""
    if not (options.mixup or options.cutmix or options.cutmix_minmax):
        return None
    mixup = Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=0.0,
        num_classes=num_classes,
    )
    return partial(mix_shares, mixup) if options.labels == "distribution" else mixup


def mix_shares(mixup: Mixup, images: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes images and their targets, which are shares of classes (B, classes)."""
    mixup.num_classes = len(images)  # each image a class of its own: the targets then say how images were mixed
    images, parts = mixup(images, torch.arange(len(images), device=shares.device))  # parts (B, B)
    return images, parts @ shares


def build_ema(options: Namespace, model: nn.Module) -> ModelEmaV3 | None:
    """The moving average of the weights, or None if it is off."""
    return ModelEmaV3(model, decay=options.model_ema_decay) if options.model_ema else None


def build_optimizer(options: Namespace, model: nn.Module, world_size: int) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices alone and the learning rate scaled to the batch."""
    learning_rate = options.lr
    if not options.unscale_lr:
        learning_rate *= options.batch_size * options.grad_accum_steps * world_size / IMAGES_OF_LR
    settings: dict[str, Any] = {"eps": options.opt_eps}
    on_cuda = next(model.parameters()).is_cuda
    if options.fused or (options.fused is None and on_cuda and options.opt in FUSED_OPTIMIZERS):
        settings["fused"] = True
    if options.opt_betas:
        settings["betas"] = tuple(options.opt_betas)
    settings |= {"lr": learning_rate, "weight_decay": options.weight_decay, "momentum": options.momentum}
    if options.opt_betas:
        check_betas(options, settings)
    try:
        return create_optimizer_v2(model, opt=options.opt, layer_decay=options.layer_decay, **settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--opt {options.opt}: {error}") from error


def check_betas(options: Namespace, settings: dict[str, Any]) -> None:
    """Raises UserError for betas that the optimizer refuses, some only in their first step: takes one with a copy."""
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    settings = {name: value for name, value in settings.items() if name != "fused"}  # the copy is on the CPU
    try:
        optimizer = create_optimizer_v2([weight], opt=options.opt, **settings)
        taken = optimizer.param_groups[0].get("betas", ())
        if len(taken) != len(options.opt_betas):  # PyTorch 2.14 drops those that are too many without a word
            raise ValueError(f"it has {len(taken) or 'none'}")
        optimizer.step()
    except (ValueError, TypeError, IndexError, AssertionError) as error:
        given = " ".join(f"{beta:g}" for beta in options.opt_betas)
        raise UserError(
            f"--opt-betas {given}: --opt {options.opt} refuses them: {' '.join(str(error).split())}; leave the flag out"
        ) from error


def build_scheduler(options: Namespace, optimizer: torch.optim.Optimizer) -> Scheduler:
    """The schedule; call `step(epoch)` with the number of the epoch that has just finished."""
    base = optimizer.param_groups[0]["lr"]
    print0(f"learning rate {base:.3g} after {options.warmup_epochs} epochs of warm-up from {options.warmup_lr:.3g}")
    if options.sched == "cosine" and base < options.min_lr:
        print0(
            f"warning: the learning rate {base:.3g} is below its floor --min-lr {options.min_lr:.3g}, so the schedule "
            "rises; raise --lr or the batch, or lower --min-lr and --warmup-lr"
        )
    if options.lr_noise and options.lr_noise_pct < options.lr_noise_std * SMALLEST_NOISE:
        raise UserError(
            f"--lr-noise-pct {options.lr_noise_pct:g}: expected {SMALLEST_NOISE:g} of --lr-noise-std "
            f"{options.lr_noise_std:g} at least: timm draws noise until it is below the limit"
        )
    try:
        scheduler, _ = create_scheduler(options, optimizer)  # it reads sched, epochs, lr_noise, seed, ...
    except ValueError as error:
        raise UserError(f"--sched {options.sched}: {error}") from error
    if scheduler is None:
        raise UserError("--sched none: expected a schedule; use constant")
    return scheduler
