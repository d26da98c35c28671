"""Optimizer, schedule and moving average of a run, from its options."""

from argparse import Namespace
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from readers.optimizer_state import SMALLEST_NOISE
from utils import UserError, print0

IMAGES_OF_LR = 512  # images a step that --lr is meant for
FUSED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")  # timm's names of PyTorch's own that have a fused form


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
