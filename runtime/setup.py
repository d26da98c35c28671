"""Builders of a run's parts from its options: data, loaders, optimizer, schedule, loss."""

import argparse
import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from datasets import StickerDataset, build_dataset, build_transform
from models import TIMM, get_network
from models.pvt import backbone_of
from models.vision import check_image_size
from readers.annotations import WITH_TEXTS
from runtime.loader import build_loader
from runtime.samplers import EvalBatchSampler, TrainBatchSampler, build_train_sampler
from runtime.weights import (
    build_model,
    check_classes,
    count_parameters,
    naming_flags,
    read_start,
    reads_texts,
    resolve_resume,
)
from utils import Processes, UserError, failing_together, make_deterministic, print0, set_seeds

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "pytorch-pretrained-bert")
IMAGES_OF_LR = 512  # images a step that --lr is meant for

FUSED_OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")  # timm's names of PyTorch's own that have a fused form


class Run(NamedTuple):
    """What a run is made of."""

    options: argparse.Namespace
    processes: Processes
    model: nn.Module
    start: dict[str, Any]
    data: dict[str, StickerDataset]
    facts: dict[str, Any]


def build_run(options: argparse.Namespace, processes: Processes) -> Run:
    """Builds what the options ask for; raises UserError on every process where one of them cannot."""
    with failing_together():
        if options.deterministic:
            make_deterministic()
        check_options(options)
    resolve_resume(options, processes)
    with failing_together():
        set_seeds(options.seed + processes.rank)
        start = read_start(options)
        data = build_data(options, start)
        class_names = next(iter(data.values())).class_names
        check_classes(options, start, class_names)
        model = build_model(options, start, len(class_names)).to(processes.device)
        prepare_computing(options, model)
    print0(
        f"{options.model}: {count_parameters(model):,} parameters learn, on {processes.world_size} x {processes.device}"
    )
    return Run(options, processes, model, start, data, describe_run(vars(options)))


def prepare_computing(options: argparse.Namespace, model: nn.Module) -> None:
    """How the model computes, which changes no result beyond rounding: layout, checkpointing, compilation."""
    model.to(memory_format=memory_format(options))
    if not get_network(options.model).reads_images:
        return
    vision_model = backbone_of(model)
    if options.grad_checkpointing:
        try:
            vision_model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # some of timm's networks
            raise UserError(f"--grad-checkpointing: {options.model} cannot do it: leave the flag out") from error
    if options.compile:
        vision_model.compile()


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, before anything is read or written."""
    network = get_network(options.model)
    if network.is_pyramid:
        with naming_flags():
            check_image_size(options.input_size, options.input_size, options.alpha if network.selects_patches else 1)
    check_model(options)
    if options.eval and not options.resume:
        raise UserError("--eval evaluates a checkpoint: name it with --resume")
    if options.resume not in ("", "auto") and options.finetune:
        raise UserError("--resume continues a run and --finetune starts one: give one of them")
    if options.resume == "auto" and not options.output_dir:
        raise UserError("--resume auto looks for a checkpoint in --output-dir: name it")
    if options.resume == "auto" and options.start_epoch:
        raise UserError("--start-epoch goes with a fresh run: --resume auto knows the epoch itself")
    if not options.eval and not options.output_dir:
        raise UserError("--output-dir is missing: name the folder for checkpoints and log")
    if options.scale[0] > options.scale[1]:
        raise UserError(
            f"--scale {options.scale[0]:g} {options.scale[1]:g}: expected the least crop before the largest"
        )
    if (options.mixup or options.cutmix or options.cutmix_minmax) and options.batch_size % 2:
        raise UserError(f"--batch-size {options.batch_size} is odd: --mixup and --cutmix take images in pairs")


def check_model(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go with the model."""
    if reads_texts(options) and options.dataset not in WITH_TEXTS:
        raise UserError(
            f"--model {options.model} reads texts, which --dataset {options.dataset} has not: use main_V.py, or one of "
            f"{', '.join(WITH_TEXTS)}"
        )
    if options.pretrained and not options.model.startswith(TIMM):
        raise UserError(f"--pretrained is for --model {TIMM}NAME: name a file with --visfinetune for {options.model}")
    if options.pretrained and options.visfinetune:
        raise UserError("--pretrained and --visfinetune both name weights: give one of them")
    if options.visfinetune and options.model in ("bert", "majority"):
        raise UserError(f"--visfinetune: --model {options.model} sees no image: leave the flag out")
    if options.layer_decay and not get_network(options.model).is_pyramid:
        raise UserError(f"--layer-decay is for lora, lora_v and pvt: leave it out with --model {options.model}")


def build_data(options: argparse.Namespace, start: dict[str, Any]) -> dict[str, StickerDataset]:
    """The splits that the run reads; the published protocol never reads val."""
    if options.eval:
        splits = [options.eval_split]
    else:
        splits = ["train", "test"] if options.protocol == "published" else ["train", "val", "test"]
    tokenizer = start.get("tokenizer")
    name = "SER_V" if options.dataset == "SER" and tokenizer is None else options.dataset
    data = {}
    for split in splits:
        transform = build_transform(
            split == "train" and not options.no_aug,
            input_size=options.input_size,
            color_jitter=options.color_jitter,
            auto_augment=None if options.aa == "none" else options.aa,
            interpolation=options.train_interpolation,
            reprob=options.reprob,
            remode=options.remode,
            recount=options.recount,
            scale=tuple(options.scale),
        )
        replaces = split == "train" and options.on_bad_image == "skip"
        data[split] = build_dataset(
            name,
            options.data_path,
            split,
            transform=transform,
            tokenizer=tokenizer,
            on_bad_image="replace" if replaces else options.on_bad_image,
            cache_images=options.cache_images,
            jpeg_draft=options.jpeg_draft and split == "train",
        )
        print0(f"{options.dataset} {split}: {len(data[split]):,} images")
        if tokenizer is not None and not any(sample.text for sample in data[split].samples):
            print0(f"warning: none of the images of {split} has a text, which {options.model} reads")
    return data


def amp_dtype(options: argparse.Namespace, device: torch.device) -> torch.dtype:
    """The forward pass's precision: float16 on CUDA as published, float32 elsewhere, unless asked for."""
    name = options.amp_dtype
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


def memory_format(options: argparse.Namespace) -> torch.memory_format:
    """How images lie in memory."""
    return torch.channels_last if options.channels_last else torch.contiguous_format


def build_ema(options: argparse.Namespace, model: nn.Module) -> ModelEmaV3 | None:
    """The moving average of the weights, or None where it is off."""
    return ModelEmaV3(model, decay=options.model_ema_decay) if options.model_ema else None


def build_eval_loader(options: argparse.Namespace, processes: Processes, dataset: StickerDataset) -> DataLoader:
    """A loader of whole batches, of which each process has its share unless --no-dist-eval."""
    shares = (processes.world_size, processes.rank) if options.dist_eval else (1, 0)
    sampler = EvalBatchSampler(len(dataset), options.batch_size, *shares)
    return build_loader(dataset, batch_sampler=sampler, **loader_settings(options, processes))


def loader_settings(options: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Settings of any data loader; no more workers than this machine has cores."""
    return {
        "num_workers": min(options.num_workers, os.cpu_count() or 1),
        "prefetch_factor": options.prefetch_factor,
        "pin_memory": options.pin_mem and processes.device.type == "cuda",
        "seed": options.seed + processes.rank,
    }


def build_train_loader(options: argparse.Namespace, processes: Processes, dataset: StickerDataset) -> DataLoader:
    """The training loader; its `batch_sampler`, which drops the last incomplete batch, is to be told the epoch."""
    order = build_train_sampler(
        len(dataset),
        num_replicas=processes.world_size,
        rank=processes.rank,
        batch_size=options.batch_size,
        repeated_aug=options.repeated_aug,
        seed=options.seed,
        say=print0,
    )
    num_batches = options.steps_per_epoch and options.steps_per_epoch * options.grad_accum_steps
    sampler = TrainBatchSampler(
        order, options.batch_size, seed=options.seed, rank=processes.rank, num_batches=num_batches
    )
    return build_loader(dataset, batch_sampler=sampler, **loader_settings(options, processes))


def build_optimizer(options: argparse.Namespace, model: nn.Module, world_size: int) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices alone and the learning rate scaled to the batch (spec section 6)."""
    learning_rate = options.lr
    if not options.unscale_lr:
        learning_rate *= options.batch_size * options.grad_accum_steps * world_size / IMAGES_OF_LR
    settings: dict[str, Any] = {"eps": options.opt_eps}
    on_cuda = next(model.parameters()).is_cuda
    if options.fused or (options.fused is None and on_cuda and options.opt in FUSED_OPTIMIZERS):
        settings["fused"] = True
    if options.opt_betas:
        settings["betas"] = tuple(options.opt_betas)
    try:
        return create_optimizer_v2(
            model,
            opt=options.opt,
            lr=learning_rate,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            layer_decay=options.layer_decay,
            **settings,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--opt {options.opt}: {error}") from error


def build_scheduler(options: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Scheduler:
    """The schedule, to be advanced by `step(epoch)` with the number of the epoch just finished."""
    base = optimizer.param_groups[0]["lr"]
    print0(f"learning rate {base:.3g} after {options.warmup_epochs} epochs of warm-up from {options.warmup_lr:.3g}")
    if options.sched == "cosine" and base < options.min_lr:
        print0(
            f"warning: the learning rate {base:.3g} is below its floor --min-lr {options.min_lr:.3g}, so the schedule "
            "rises; raise --lr or the batch, or lower --min-lr and --warmup-lr"
        )
    noise = options.lr_noise
    if noise:
        noise = [share * options.epochs for share in noise]
        noise = noise[0] if len(noise) == 1 else noise
    settings = dict(
        num_epochs=options.epochs,
        decay_epochs=options.decay_epochs,
        cooldown_epochs=options.cooldown_epochs,
        patience_epochs=options.patience_epochs,
        decay_rate=options.decay_rate,
        min_lr=options.min_lr,
        warmup_lr=options.warmup_lr,
        warmup_epochs=options.warmup_epochs,
        noise=noise,
        noise_pct=options.lr_noise_pct,
        noise_std=options.lr_noise_std,
        noise_seed=options.seed,
    )
    try:
        scheduler, _ = create_scheduler_v2(optimizer, sched=options.sched, **settings)
    except ValueError as error:
        raise UserError(f"--sched {options.sched}: {error}") from error
    if scheduler is None:
        raise UserError("--sched none: expected a schedule; use constant")
    return scheduler


def build_mixup(options: argparse.Namespace, num_classes: int) -> Mixup | None:
    """Mixup and CutMix, which smooth the labels themselves, or None where both are off."""
    if not (options.mixup or options.cutmix or options.cutmix_minmax):
        return None
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


def build_criterion(options: argparse.Namespace, mixup: Mixup | None) -> nn.Module:
    """Cross-entropy with label smoothing, unless Mixup has smoothed the labels."""
    return nn.CrossEntropyLoss(label_smoothing=0.0 if mixup else options.smoothing)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)

KEPT_BYTES = 2**30  # pieces up to this size stay with the process


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next tensor of its size instead of giving it back to the system.

    glibc gives large pieces back when they are freed, and the system hands them out again as empty pages, each made at
    its first touch. A training step frees and asks for the same gigabytes time after time. The price is a peak that
    fragments make higher; both are measured in docs/performance.md. Loader workers that are forked later inherit it.

    Returns:
        Whether the C library took it; False where there is no glibc (macOS, musl), and nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def version_of(package: str) -> str | None:
    """The installed version of a package; None where another packaging hides it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_run(options: dict[str, Any]) -> dict[str, Any]:
    """The resolved options, the versions of what computes, and the commit of the code."""
    versions = {name: version_of(name) for name in PACKAGES}
    command = ["git", "-C", str(Path(__file__).parents[1]), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not a git checkout
    return {"options": options, "versions": {"python": platform.python_version(), **versions}, "commit": commit}
