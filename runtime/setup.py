"""The parts of a run, built from its options: data, loaders, model, loss."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from datasets import InputStatistics, StickerDataset, build_dataset, build_transform, same_topics
from engine import Precision
from models import TIMM, Network, get_network
from models.attention import has_bfloat16
from models.baselines import input_statistics
from models.pvt import backbone_of
from readers.data_sets import DATA_SETS
from readers.images import PUBLISHED, RGB_ON_WHITE
from readers.near_duplicates import read_twins
from readers.tokenizer import DEFAULT_VOCABULARY, Tokenizer
from runtime.checks import check_options, resolve_topics
from runtime.loader import build_loader
from runtime.optimization import count_classes
from runtime.samplers import BalancedSampler, EvalBatchSampler, TrainBatchSampler, TrainOrder, build_train_sampler
from runtime.weights import Start, build_model, check_classes, find_own_name, read_start, resolve_resume
from utils import Processes, UserError, failing_together, make_deterministic, print0, printable, set_seeds

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "pytorch-pretrained-bert")


@dataclass
class Run:
    """What a run is made of; `blank_images` says how many were told of by split."""

    options: Namespace
    network: Network
    processes: Processes
    precision: Precision
    model: Any  # a network of `models`
    start: Start
    data: dict[str, StickerDataset]
    facts: dict[str, Any]
    blank_images: dict[str, int] = field(default_factory=dict)

    @cached_property
    def train_sampler(self) -> TrainBatchSampler:
        """The batches of the training; call `set_epoch` before each epoch."""
        options, dataset = self.options, self.data["train"]
        usual = build_train_sampler(
            len(dataset),
            num_replicas=self.processes.world_size,
            rank=self.processes.rank,
            batch_size=options.batch_size,
            repeated_aug=options.repeated_aug,
            seed=options.seed,
            say=print0,
        )
        order: TrainOrder = usual
        if options.sampler == "balanced":
            count_classes(dataset, "--sampler balanced")
            order = BalancedSampler(dataset.labels, usual, seed=options.seed)
        num_batches = options.steps_per_epoch and options.steps_per_epoch * options.grad_accum_steps
        return TrainBatchSampler(
            order, options.batch_size, seed=options.seed, rank=self.processes.rank, num_batches=num_batches
        )

    @cached_property
    def train_loader(self) -> DataLoader:
        """The training loader, which reads the batches of `train_sampler`."""
        return build_loader(self.data["train"], batch_sampler=self.train_sampler, **self._loader_settings())

    def eval_loader(self, split: str) -> DataLoader:
        """A loader of whole batches, built once, of which each process has its share unless --no-dist-eval."""
        if split not in self._eval_loaders:
            shares = (self.processes.world_size, self.processes.rank) if self.options.dist_eval else (1, 0)
            sampler = EvalBatchSampler(len(self.data[split]), self.eval_batch_size, *shares)
            loader = build_loader(self.data[split], batch_sampler=sampler, **self._loader_settings())
            self._eval_loaders[split] = loader
        return self._eval_loaders[split]

    @property
    def eval_batch_size(self) -> int:
        """Images a batch of an evaluation; as published if a prediction depends on it."""
        return int(1.5 * self.options.batch_size) if self.options.context == "batch" else self.options.batch_size

    @cached_property
    def _eval_loaders(self) -> dict[str, DataLoader]:
        return {}

    def _loader_settings(self) -> dict[str, Any]:
        """Settings of any data loader; no more workers than this machine has cores."""
        return {
            "num_workers": min(self.options.num_workers, os.cpu_count() or 1),
            "prefetch_factor": self.options.prefetch_factor,
            "pin_memory": self.options.pin_mem and self.processes.device.type == "cuda",
            "seed": self.options.seed + self.processes.rank,
        }

    def near_duplicates(self, split: str) -> list[int]:
        """The indices of the images of a split that --without-near-duplicates leaves out; raises UserError."""
        names = self.image_names(split)
        listed, place = self.options.without_near_duplicates, {name: index for index, name in enumerate(names)}
        flag = f"--without-near-duplicates {listed}"
        try:
            twins = read_twins(listed, split)
        except UserError as error:
            source = "it is the --json file of tools/check_dataset.py --near-duplicates N"
            raise UserError(f"{flag}: {source}: {error}") from error
        for name in twins:
            if name not in place:
                expected = f"expected images of {split}, found {printable(name)}"
                raise UserError(f"{flag}: {expected}: make it of the data set and lists of this run")
        left_out = {place[name] for name in twins}
        indices = [index for index, name in enumerate(names) if place[name] in left_out]
        if len(indices) == len(names):
            raise UserError(f"{flag}: expected images of {split} without a twin, found none: take fewer bits")
        return indices

    def image_names(self, split: str) -> list[str]:
        """The images of a split as documents name them: below the data set's folder."""
        root = DATA_SETS[self.options.dataset].images_root(self.options.data_path)
        return [os.path.relpath(sample.path, root) for sample in self.data[split].samples]

    def checkpoint_path(self, which: str = "") -> Path:
        """`checkpoint.pth`, `checkpoint_v.pth`, ... of --output-dir, with `which` before the dot."""
        return Path(self.options.output_dir) / f"{self.network.checkpoint}{which}.pth"


def build_run(options: Namespace, processes: Processes) -> Run:
    """Builds what the options ask for; raises UserError on every process if one of them cannot."""
    network = get_network(options.model, texts=options.texts)
    with failing_together():
        if options.deterministic:
            make_deterministic()
        check_options(options, network)
        resolve_topics(options, network)
    find_own_name(options, network)
    newest = resolve_resume(options, network, processes)
    with failing_together():
        set_seeds(options.seed + processes.rank)
        start = read_start(options, network, newest)
        options.input_statistics = input_statistics_of(network, start)
        choose_image_reading(options, start)
        data = build_data(options, network, start.tokenizer)
        class_names = next(iter(data.values())).class_names
        check_classes(options, start, class_names)
        model = build_model(options, network, start, len(class_names)).to(processes.device)
        precision = build_precision(options, processes.device)
        prepare_model(options, network, model, precision)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print0(f"{options.model}: {learning:,} parameters learn, on {processes.world_size} x {processes.device}")
    run = Run(options, network, processes, precision, model, start, data, describe_run(vars(options)))
    if options.without_near_duplicates:
        run.near_duplicates(options.eval_split if options.eval else "test")  # a wrong list ends the run here
    return run


def input_statistics_of(network: Network, start: Start) -> dict[str, Any] | None:
    """The input statistics of a run: its checkpoint's, or those of a network of timm; None for ImageNet's."""
    if start.checkpoint is not None:
        return start.checkpoint.setting("input_statistics")
    return input_statistics(network.name.removeprefix(TIMM)) if network.name.startswith(TIMM) else None


def build_precision(options: Namespace, device: torch.device) -> Precision:
    """The forward pass's precision: float16 on CUDA as published, float32 elsewhere, unless asked for."""
    name = options.amp_dtype
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    if name == "bfloat16" and device.type == "cpu" and not has_bfloat16():
        print0("--amp-dtype bfloat16: this processor has no instructions for it and is faster in float32")
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    return Precision(device, getattr(torch, name), memory_format)


def prepare_model(options: Namespace, network: Network, model: Any, precision: Precision) -> None:
    """How the model computes, which changes no result beyond rounding: layout, checkpointing, compilation."""
    model.to(memory_format=precision.memory_format)
    backbone = backbone_of(model) if network.reads_images else None
    if options.grad_checkpointing and backbone is not None:
        try:
            backbone.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # some of timm's networks
            raise UserError(f"--grad-checkpointing: {options.model} cannot do it: leave the flag out") from error
    if options.compile and backbone is not None:
        backbone.compile()


def choose_image_reading(options: Namespace, start: Start) -> None:
    """Resolves --image-reading: as asked for, else as the checkpoint of --resume was trained, and says what differs."""
    trained = start.checkpoint.image_reading if start.checkpoint and options.resume else RGB_ON_WHITE
    options.image_reading = options.image_reading or trained
    if options.resume and options.image_reading != trained:
        print0(f"warning: --image-reading {options.image_reading}, but {options.resume} was trained with {trained}")
    elif options.image_reading == PUBLISHED:
        print0("images are read as the published code reads them: transparency and CMYK are noise")


def build_data(options: Namespace, network: Network, tokenizer: Tokenizer | None) -> dict[str, StickerDataset]:
    """The splits that the run reads; the published protocol never reads val."""
    if options.eval:
        splits = [options.eval_split]
    else:
        splits = ["train", "test"] if options.protocol == "published" else ["train", "val", "test"]
    name = "SER_V" if options.dataset == "SER" and tokenizer is None else options.dataset
    topics = None
    if network.reads_topics:
        topics = same_topics((tokenizer or Tokenizer(DEFAULT_VOCABULARY)) if options.topics_as == "encoded" else None)
    data = {}
    for split in splits:
        is_alone = options.context == "alone" and split != "train"
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
            statistics=InputStatistics(**(options.input_statistics or {})),
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
            annotations=options.annotations,
            image_reading=options.image_reading,
            topics=None if is_alone else topics,
            votes=options.labels == "distribution",
        )
        print0(f"{options.dataset} {split}: {len(data[split]):,} images")
        if tokenizer is not None and not any(sample.text for sample in data[split].samples):
            print0(f"warning: none of the images of {split} has a text, which {network.name} reads")
    return data


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES = 2**30  # pieces up to this size stay with the process


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next tensor of its size instead of giving it back to the system.

    glibc gives large pieces back when they are freed, and the system hands them out again as empty pages, each made at
    its first touch. A training step frees and asks for the same gigabytes time after time. The price is a peak that
    fragments make higher; both are measured in docs/performance.md. Loader workers that are forked later inherit it.

    Returns:
        Whether the C library took it; False if there is no glibc (macOS, musl), and nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def version_of(package: str) -> str | None:
    """The installed version of a package; None if another packaging hides it."""
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
