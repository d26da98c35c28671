"""The state of a training: what it is made of, what a checkpoint keeps of it, and how a run takes it up again.

A checkpoint holds all that the rest of a run depends on: weights, optimizer, scaler, moving average, the epoch and the
batches of it that are done, the log, and the state of every process's random generators. The schedule is advanced anew
with the figures of the log. What a loader draws depends on seed, process, epoch and position alone
(`runtime/samplers.py`).
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from datasets import BadImage
from engine import LossRecord
from readers.checkpoint import load_state
from readers.optimizer_state import load_optimizer_state
from runtime.boards import Board
from runtime.setup import Run, amp_dtype, build_ema, build_optimizer, build_scheduler
from utils import UserError, failing_together, gather, print0, shown, write_checkpoint


@dataclass
class Training:
    """What changes while a run trains, and what changes it.

    Attributes:
        model: the network; `parallel` is the same, joined with those of the other processes.
        ema: moving average of the weights, which is then what is evaluated, or None.
        epoch: the epoch under way, of which `batch` batches are done; `losses`, `seconds` and `skipped` are its own.
        best: accuracy and number of the best epoch so far; history: the log's entries.
        boards: what is told of them as well, on the first process.
    """

    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    losses: LossRecord
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    skipped: dict[int, BadImage] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=lambda: {"acc1": 0.0, "epoch": -1})
    history: list[dict[str, Any]] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)

    @property
    def measured(self) -> nn.Module:
        """The network that is evaluated."""
        return self.ema.module if self.ema else self.model

    def begin_epoch(self, epoch: int) -> None:
        """Sets the position to the start of an epoch."""
        self.epoch, self.batch, self.seconds = epoch, 0, 0.0
        self.losses.values.clear()
        self.skipped.clear()


def start_training(run: Run, loader: DataLoader) -> Training:
    """Optimizer, schedule and scaler, fresh or as the checkpoint of --resume has them."""
    options, processes = run.options, run.processes
    optimizer = build_optimizer(options, run.model, processes.world_size)
    scheduler = build_scheduler(options, optimizer)
    scaled = amp_dtype(options, processes.device) == torch.float16
    model = run.model
    if processes.world_size > 1:
        device_ids = [processes.device.index] if processes.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=device_ids)
    names = [sample.path for sample in run.data["train"].samples]
    training = Training(
        model=run.model,
        parallel=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(processes.device.type, enabled=scaled),
        ema=build_ema(options, run.model),
        losses=LossRecord(names, check_every=1 if processes.device.type == "cpu" else 50),
        epoch=options.start_epoch,
    )
    if options.resume:
        resume(run, training, len(loader))
    elif training.epoch:
        scheduler.step(training.epoch - 1, 0.0)
    return training


def resume(run: Run, training: Training, num_batches: int) -> None:
    """Brings a training to where the checkpoint of --resume was written.

    Raises:
        UserError: the checkpoint has no training to go on with, or one that does not fit or is damaged.
    """
    options = run.options
    try:
        restore(run, training, num_batches)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(
            f"--resume {options.resume}: expected a training's state as this code writes it, found another "
            f"({type(error).__name__}: {error}); start from its weights with --finetune"
        ) from error
    where = f"epoch {training.epoch} is next"
    if training.batch:
        where = f"epoch {training.epoch} goes on after {training.batch} of {num_batches} batches"
    print0(f"resumed {options.resume}: {where}, best so far {training.best['acc1']:.2f} %")


def restore(run: Run, training: Training, num_batches: int) -> None:
    """Puts each part of the training into the state that the checkpoint has."""
    options, start = run.options, run.start
    say_changed_options(run)
    if "optimizer" not in start:
        raise UserError(
            f"--resume {options.resume}: has weights only, no optimizer to continue with; start with --finetune"
        )
    load_optimizer_state(training.optimizer, start["optimizer"], f"--resume {options.resume}")
    if training.scaler.is_enabled() and start.get("scaler"):
        training.scaler.load_state_dict(start["scaler"])
    if training.ema and start.get("model_ema"):
        load_state(training.ema.module, start["model_ema"], f"--resume {options.resume}: model_ema")
    training.best.update(start.get("best", {}))
    training.history.extend(start.get("history", []))
    averaged = start["args"].get("model_ema", False)
    if options.protocol == "val" and training.best["epoch"] >= 0 and averaged != options.model_ema:
        raise UserError(
            f"--resume {options.resume}: its best epoch was chosen {'with' if averaged else 'without'} --model-ema: "
            "do the same, as --protocol val compares epochs"
        )
    if "epoch" not in start:
        print0(f"--resume {options.resume}: does not say its epoch; the run goes on with --start-epoch")
    training.begin_epoch(start.get("epoch", options.start_epoch - 1) + 1)
    restore_schedule(training)
    restore_position(run, training, num_batches)


def say_changed_options(run: Run) -> None:
    """Tells which options that shape the training differ from those of the checkpoint."""
    saved, now = run.start["args"], vars(run.options)
    silent = {"resume", "output_dir", "config", "data_path", "bert_model", "visfinetune", "finetune", "local_rank"}
    changed = [name for name in now if name not in silent and name in saved and saved[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} {now[name]} (was {shown(saved[name])})" for name in changed)
        print0(f"--resume {run.options.resume}: options that differ from the checkpoint's: {told}")


def restore_schedule(training: Training) -> None:
    """Advances a fresh schedule through the finished epochs, with the figures it was advanced with."""
    for entry in training.history:
        training.scheduler.step(entry["epoch"], watched_accuracy(entry))
    if not training.history and training.epoch:  # a published checkpoint, or one of a run that began with --start-epoch
        training.scheduler.step(training.epoch - 1, training.best["acc1"])


def watched_accuracy(entry: dict[str, Any]) -> float:
    """The accuracy by which an entry of the log chooses the best epoch."""
    return entry["val_acc1"] if "val_acc1" in entry else entry["test_acc1"]


def restore_position(run: Run, training: Training, num_batches: int) -> None:
    """The place in the epoch and the random numbers, as they were, or, with other processes or batches, the nearest."""
    options, processes, start = run.options, run.processes, run.start
    states = start.get("processes", [])
    if not states:
        print0(f"--resume {options.resume}: has no random states; data order and augmentation go on with --seed")
        return
    images_done = start["step"] * start["args"].get("batch_size", options.batch_size) * len(states)
    batch = images_done // (options.batch_size * processes.world_size)
    training.batch = num_batches if batch >= num_batches else batch - batch % options.grad_accum_steps
    training.seconds = start.get("epoch_seconds", 0.0)
    own = states[processes.rank % len(states)]
    training.losses.values = own["losses"].tolist()
    training.skipped.update((index, BadImage(index, *image)) for index, *image in own["skipped"])
    threads = torch.get_num_threads()
    if own["threads"] != threads:
        print0(
            f"warning: the checkpoint was written with {own['threads']} threads a process, now there are {threads}: "
            "results may differ in the last bits; OMP_NUM_THREADS sets them"
        )
    if len(states) == processes.world_size:
        set_random_state(own["random"], processes.device)
    else:
        print0(
            f"warning: {len(states)} processes wrote the checkpoint and {processes.world_size} go on: the order of the "
            "data and the random numbers differ from a run that was not interrupted; the learning rate follows --lr, "
            f"--batch-size and {processes.world_size} processes"
        )


def save(run: Run, training: Training, names: list[str]) -> None:
    """Writes a checkpoint of the training as it stands, under each of the names in turn; all processes take part."""
    options = run.options
    training.losses.check()
    parts = gather(
        {
            "random": random_state(run.processes.device),
            "threads": torch.get_num_threads(),
            "losses": torch.tensor(training.losses.values, dtype=torch.float64),
            "skipped": [list(image) for image in training.skipped.values()],
        }
    )
    with failing_together():
        if not run.processes.is_main:
            return
        checkpoint = {
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "lr_scheduler": training.scheduler.state_dict(),
            "scaler": training.scaler.state_dict(),
            "epoch": training.epoch - 1,  # the last finished one, as in published checkpoints
            "step": training.batch,  # batches of the next one that are done
            "epoch_seconds": training.seconds,
            "processes": parts,
            "best": training.best,
            "history": training.history,
            "args": vars(options),
            "class_names": list(run.data["train"].class_names),
            "bert_config": run.start.get("bert_config"),
            "vocabulary_sha256": getattr(run.start.get("tokenizer"), "sha256", None),
        }
        if training.ema:
            checkpoint["model_ema"] = training.ema.module.state_dict()
        for name in names:
            write_checkpoint(Path(options.output_dir) / name, checkpoint)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators on the CPU and on `device`, of numpy's global one and of Python's."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    _, python_words, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "numpy_gauss": float(numpy_state["gauss"]) if numpy_state["has_gauss"] else None,
        "python": torch.tensor(python_words),
        "python_gauss": python_gauss,
    }
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the generators into a state that `random_state` gave; a device that it does not know keeps its own."""
    torch.set_rng_state(state["torch"])
    gauss = state["numpy_gauss"]
    key = state["numpy"].numpy().astype(np.uint32)
    numpy_state = ("MT19937", key, state["numpy_position"], int(gauss is not None), gauss or 0.0)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate((3, tuple(state["python"].tolist()), state["python_gauss"]))
    if device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])
