"""The training of a run: epochs, checkpoints, and taking up a run where it stopped.

A checkpoint holds all that the rest of a run depends on: weights, optimizer, schedule (as the figures it was advanced
with), scaler, moving average, the epoch and the batches of it that are done, and the state of every process's random
generators. What a loader draws depends on seed, process, epoch and position alone (`datasets/samplers.py`).
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import datasets
from build import (
    Run,
    amp_dtype,
    build_criterion,
    build_ema,
    build_mixup,
    build_optimizer,
    build_scheduler,
    build_train_loader,
    checkpoint_name,
    memory_format,
)
from engine import LossRecord, train_one_epoch
from errors import Interrupted, UserError
from evaluation import measure, noting_skipped, report
from utils.checkpoint import load_state, read_checkpoint, write_checkpoint
from utils.distributed import agree, failing_together, gather
from utils.interruption import StopSignals
from utils.logging import (
    make_writable_folder,
    print0,
    progress,
    read_json_lines,
    set_aside,
    write_json,
    write_json_lines,
)
from utils.randomness import random_state, set_random_state
from utils.watchdog import Watchdog


@dataclass
class Training:
    """What changes while a run trains, and what changes it.

    Attributes:
        model: the network; `parallel` is the same, joined with those of the other processes.
        ema: moving average of the weights, which is then what is evaluated, or None.
        epoch: the epoch under way, of which `batch` batches are done; `losses`, `seconds` and `skipped` are its own.
        best: accuracy and number of the best epoch so far; history: the log's entries.
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
    skipped: dict[int, datasets.BadImage] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=lambda: {"acc1": 0.0, "epoch": -1})
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def measured(self) -> nn.Module:
        """The network that is evaluated."""
        return self.ema.module if self.ema else self.model

    def begin_epoch(self, epoch: int) -> None:
        """Sets the position to the start of an epoch."""
        self.epoch, self.batch, self.seconds = epoch, 0, 0.0
        self.losses.values.clear()
        self.skipped.clear()


def train(run: Run) -> None:
    """Trains to the last epoch, with a checkpoint, a line of log and an evaluation after each.

    The published protocol evaluates on test each time and reports the running maximum; the protocol `val` chooses the
    epoch on val and evaluates on test once, at the end.

    Raises:
        Interrupted: a signal came; the last step was finished and a checkpoint written.
    """
    options, processes = run.options, run.processes
    with failing_together():
        loader = build_train_loader(options, processes, run.data["train"])
        training = start_training(run, loader)
        prepare_folder(run, training)
    with ExitStack() as contexts:
        stop = contexts.enter_context(StopSignals(speaks=processes.is_main))
        watchdog = contexts.enter_context(
            Watchdog(options.timeout, rank=processes.rank, world_size=processes.world_size, store=processes.store)
        )
        try:
            while training.epoch < options.epochs:
                train_epoch(run, training, loader, watchdog=watchdog, stop=stop)
                evaluate_epoch(run, training, watchdog=watchdog, stop=stop)
        except Interrupted:
            save(run, training, [checkpoint_name(options)])
            print0(f"stopped by a signal in epoch {training.epoch} after {training.batch} batches, checkpoint written")
            raise
        finish(run, training, watchdog=watchdog, stop=stop)


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
    say_changed_options(run)
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
    restore_optimizer(training.optimizer, start, options.resume)
    if training.scaler.is_enabled() and start.get("scaler"):
        training.scaler.load_state_dict(start["scaler"])
    if training.ema and start.get("model_ema"):
        load_state(training.ema.module, start["model_ema"], f"--resume {options.resume}: model_ema")
    training.best.update(start.get("best", {}))
    training.history.extend(start.get("history", []))
    training.begin_epoch(start.get("epoch", options.start_epoch - 1) + 1)
    restore_schedule(training)
    restore_position(run, training, num_batches)


def say_changed_options(run: Run) -> None:
    """Tells which options that shape the training differ from those of the checkpoint."""
    saved, now = run.start["args"], vars(run.options)
    silent = {"resume", "output_dir", "config", "data_path", "bert_model", "visfinetune", "finetune", "local_rank"}
    changed = [name for name in now if name not in silent and name in saved and saved[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} {now[name]} (was {saved[name]})" for name in changed)
        print0(f"--resume {run.options.resume}: options that differ from the checkpoint's: {told}")


def restore_optimizer(optimizer: torch.optim.Optimizer, start: dict[str, Any], path: str) -> None:
    """Loads the optimizer's moments; the learning rate comes from the schedule."""
    if "optimizer" not in start:
        raise UserError(f"--resume {path}: has weights only, no optimizer to continue with; start with --finetune")
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(start["optimizer"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"--resume {path}: its optimizer does not fit ({error}); check --opt and --tunebert") from error
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def restore_schedule(training: Training) -> None:
    """Advances a fresh schedule through the finished epochs, with the figures it was advanced with."""
    for entry in training.history:
        training.scheduler.step(entry["epoch"], watched_accuracy(entry))
    if not training.history and training.epoch:  # a published checkpoint
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
    images_a_batch = options.batch_size * processes.world_size
    images_done = start["step"] * start["args"].get("batch_size", options.batch_size) * len(states)
    steps_done = images_done // images_a_batch // options.grad_accum_steps
    training.batch = min(steps_done * options.grad_accum_steps, num_batches)
    training.seconds = start.get("epoch_seconds", 0.0)
    own = states[processes.rank % len(states)]
    training.losses.values = own["losses"].tolist()
    training.skipped.update((index, datasets.BadImage(index, *image)) for index, *image in own["skipped"])
    if len(states) == processes.world_size:
        set_random_state(own["random"], processes.device)
    else:
        print0(
            f"warning: {len(states)} processes wrote the checkpoint and {processes.world_size} go on: the order of the "
            "data and the random numbers differ from a run that was not interrupted; the learning rate follows --lr, "
            f"--batch-size and {processes.world_size} processes"
        )


def prepare_folder(run: Run, training: Training) -> None:
    """The output folder with the run's options; a log that is not this run's is set aside."""
    folder = Path(run.options.output_dir)
    make_writable_folder(folder)
    best = folder / checkpoint_name(run.options, "_best")
    if run.options.protocol == "val" and training.best["epoch"] >= 0 and not best.is_file():
        raise UserError(
            f"--output-dir {folder}: expected {best.name}, the best epoch {training.best['epoch']} of the resumed run, "
            "which --protocol val evaluates at the end: copy it from where that run wrote"
        )
    if run.processes.is_main:
        log = folder / "log.txt"
        written = read_json_lines(log)
        if written != training.history[: len(written)]:
            set_aside(log)
        if training.history:
            write_json_lines(log, training.history)
        write_json(folder / "options.json", run.facts)


def train_epoch(run: Run, training: Training, loader: DataLoader, *, watchdog: Watchdog, stop: StopSignals) -> None:
    """Trains to the end of the epoch under way; every --checkpoint-steps steps, and on a signal, a checkpoint."""
    options, processes = run.options, run.processes
    began = time.monotonic() - training.seconds
    every = (options.checkpoint_steps or 0) * options.grad_accum_steps

    def after_step(batches_done: int) -> None:
        training.batch, training.seconds = batches_done, time.monotonic() - began
        if training.ema:
            training.ema.update(training.model)
        if exit_code := agree(stop.exit_code):
            raise Interrupted(exit_code)
        if every and batches_done % every == 0:
            save(run, training, [checkpoint_name(options)])

    mixup = build_mixup(options, len(run.data["train"].class_names))
    title, done, total = f"epoch {training.epoch}", training.batch, len(loader)
    loader.batch_sampler.set_epoch(training.epoch, first_batch=done)
    batches = watchdog.watched(datasets.batches(loader), title, start=done)
    batches = progress(batches, total=total, title=title, every=options.log_every, done=done)
    train_one_epoch(
        training.parallel,
        build_criterion(options, mixup),
        noting_skipped(batches, training.skipped),
        training.optimizer,
        device=processes.device,
        scaler=training.scaler,
        losses=training.losses,
        num_batches=total,
        first_batch=done,
        accumulate=options.grad_accum_steps,
        amp_dtype=amp_dtype(options, processes.device),
        clip_grad=options.clip_grad,
        mixup=mixup,
        memory_format=memory_format(options),
        after_step=after_step,
    )


def evaluate_epoch(run: Run, training: Training, *, watchdog: Watchdog, stop: StopSignals) -> None:
    """Evaluates the epoch that was trained, notes it in the log, and writes its checkpoints."""
    watched = "test" if run.options.protocol == "published" else "val"
    evaluation = measure(run, training.measured, watched, watchdog=watchdog, stop=stop)
    metrics = evaluation.metrics
    parts = gather((training.losses.mean(), list(training.skipped.values())))
    entry = {
        "epoch": training.epoch,
        "lr": training.optimizer.param_groups[0]["lr"],
        "train_loss": sum(loss for loss, _ in parts) / len(parts),
        "train_seconds": round(training.seconds, 2),
        f"{watched}_acc1": metrics["acc1"],
        f"{watched}_loss": metrics["loss"],
        f"{watched}_macro_f1": metrics["macro"]["f1"],
    }
    bad = {image.path for _, images in parts for image in images}
    if bad:
        entry["bad_images"] = sorted(bad)
        print0(f"epoch {training.epoch}: {len(bad)} images of train cannot be read and were replaced by others")
    if evaluation.not_scored:
        entry[f"{watched}_not_scored"] = len(evaluation.not_scored)
    finish_epoch(run, training, entry)


def finish_epoch(run: Run, training: Training, entry: dict[str, Any]) -> None:
    """Notes the best epoch and the log's entry, advances the schedule, and writes the checkpoints, the best one first.

    The log is written last, from the history that the checkpoint holds, so that it is never ahead of it.
    """
    options, epoch, accuracy = run.options, training.epoch, watched_accuracy(entry)
    is_best = accuracy > training.best["acc1"] or training.best["epoch"] < 0
    if is_best:
        training.best.update(acc1=accuracy, epoch=epoch)
    entry |= {"best_acc1": training.best["acc1"], "best_epoch": training.best["epoch"]}
    training.history.append(entry)
    training.scheduler.step(epoch, accuracy)
    training.begin_epoch(epoch + 1)
    print0(
        f"epoch {epoch}: loss {entry['train_loss']:.4f}, accuracy {accuracy:.2f} %, "
        f"best {training.best['acc1']:.2f} % (epoch {training.best['epoch']}), {entry['train_seconds']:.0f} s"
    )
    names = [checkpoint_name(options, "_best")] * is_best
    names += [checkpoint_name(options, f"_epoch{epoch:04d}")] * (options.keep > 0)
    save(run, training, [*names, checkpoint_name(options)])
    with failing_together():
        if run.processes.is_main:
            folder = Path(options.output_dir)
            write_json_lines(folder / "log.txt", training.history)
            old = sorted(folder.glob(checkpoint_name(options, "_epoch[0-9]*")))[: -options.keep or None]
            for path in old if options.keep else ():
                path.unlink()


def save(run: Run, training: Training, names: list[str]) -> None:
    """Writes a checkpoint of the training as it stands, under each of the names in turn; all processes take part."""
    options = run.options
    training.losses.check()
    parts = gather(
        {
            "random": random_state(run.processes.device),
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


def finish(run: Run, training: Training, *, watchdog: Watchdog, stop: StopSignals) -> None:
    """The test figures of the run: of the best epoch on val, or, as published, of the last epoch."""
    folder = Path(run.options.output_dir)
    chosen = "" if run.options.protocol == "published" else "_best"
    path = folder / checkpoint_name(run.options, chosen)
    if chosen:
        with failing_together():
            if run.processes.is_main:
                weights = read_checkpoint(path, "checkpoint")["model_ema" if training.ema else "model"]
                load_state(training.measured, weights, str(path))
        if dist.is_initialized():
            for tensor in training.measured.state_dict().values():
                dist.broadcast(tensor, 0)
    evaluation = measure(run, training.measured, "test", watchdog=watchdog, stop=stop)
    report(run, evaluation, "test", path, folder)
    if not chosen:
        print0("the best accuracy above is the maximum over epochs on test, as published: it is optimistic")
