"""The state of a training: what it is made of, what a checkpoint keeps of it, and how a run continues from it.

A checkpoint holds all that the rest of a run depends on: weights, optimizer, scaler, moving average, the epoch and the
batches of it that are done, the log, and the state of every process's random generators. The schedule is advanced again
with the figures of the log. What a loader draws depends on seed, process, epoch and position alone
(`runtime/samplers.py`).
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets import BadImage
from engine import LossRecord, Precision, Stepper
from readers.checkpoint import load_state
from readers.checkpoint_fields import Checkpoint
from readers.optimizer_state import load_optimizer_state, load_schedule
from runtime.optimization import build_criterion, build_ema, build_mixup, build_optimizer, build_scheduler
from runtime.options import METRICS
from runtime.setup import Run
from utils import UserError, failing_together, gather, print0, shown, write_checkpoint

FP32_EPOCHS = 2  # of --fp32-resume
# Options that a resumed run may change without changing the training.
NOT_OF_THE_TRAINING = {
    "resume", "output_dir", "config", "data_path", "bert_model", "visfinetune", "finetune", "local_rank",
}  # fmt: skip


class Training:
    """What changes while a run trains, and what changes it: fresh, or as the checkpoint of --resume has it.

    Attributes:
        model: the network; `parallel` is the same, joined with those of the other processes.
        ema: moving average of the weights, which is then what is evaluated, or None.
        epoch: the epoch under way, of which `batch` batches are done; `losses`, `seconds` and `skipped` are its own.
        best: number and figures of the best epoch so far, by --best-metric.
        history: the entries of the log.
        first_epoch: the epoch that the run started with.
        follows_file: whether rates and schedule are those of a file of the published script, not the command line's.

    Raises:
        UserError: the checkpoint has no training to continue, or one that does not fit or is damaged.
    """

    def __init__(self, run: Run):
        options, processes = run.options, run.processes
        self.run = run
        self.num_batches = len(run.train_loader)  # built first, as too few images are an error
        self.criterion = build_criterion(options, run.data["train"])
        self.mixup = build_mixup(options, len(run.data["train"].class_names))
        self.model = self.parallel = run.model
        self.optimizer = build_optimizer(options, run.model, processes.world_size)
        self.scheduler = build_scheduler(options, self.optimizer)
        if processes.world_size > 1:
            device_ids = [processes.device.index] if processes.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(run.model, device_ids=device_ids)
        is_scaled = run.precision.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=is_scaled)
        self.ema = build_ema(options, run.model)
        names = [sample.path for sample in run.data["train"].samples]
        self.losses = LossRecord(names, check_every=1 if processes.device.type == "cpu" else 50)
        self.skipped: dict[int, BadImage] = {}
        self.best: dict[str, Any] = {"acc1": 0.0, "epoch": -1}
        self.history: list[dict[str, Any]] = []
        self.follows_file = False
        self.begin_epoch(options.start_epoch)
        if options.resume:
            assert run.start.checkpoint is not None
            self._resume(run.start.checkpoint)
            run.start.checkpoint.drop_tensors()
        elif self.epoch:
            self.scheduler.step(self.epoch - 1, 0.0)
        self.first_epoch = self.epoch

    @property
    def measured(self) -> nn.Module:
        """The network that is evaluated."""
        return self.ema.module if self.ema else self.model

    @property
    def precision(self) -> Precision:
        """That of the epoch under way: with --fp32-resume the first two after the start are in float32."""
        is_full = self.run.options.fp32_resume and self.epoch < self.first_epoch + FP32_EPOCHS
        return replace(self.run.precision, amp_dtype=torch.float32) if is_full else self.run.precision

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left, or --early-stop ends the training here."""
        options, best = self.run.options, self.best["epoch"]
        has_stopped = options.early_stop and best >= 0 and self.epoch - 1 - best >= options.early_stop
        return bool(self.epoch >= options.epochs or has_stopped)

    @property
    def evaluates_best(self) -> bool:
        """Whether the run ends with the figures of its best epoch, not of its last one."""
        return self.run.options.protocol == "val" or self.run.network.keeps_best

    def stepper(self, after_step: Callable[[int], None]) -> Stepper:
        """How batches become steps of the optimizer, with `after_step` called after each."""
        options, scaler = self.run.options, self.scaler
        if self.precision.amp_dtype != torch.float16:
            scaler = torch.amp.GradScaler(self.run.processes.device.type, enabled=False)
        return Stepper(self.optimizer, scaler, options.grad_accum_steps, options.clip_grad, self.mixup, after_step)

    def progress(self) -> str:
        """The mean loss of the epoch so far, on this process, and the learning rate."""
        rate = f"lr {self.optimizer.param_groups[0]['lr']:.3g}"
        values = self.losses.values  # those that have been fetched from the device
        return f"loss {sum(values) / len(values):.4f}, {rate}" if values else rate

    @property
    def told_best(self) -> str:
        """The best epoch so far, in words, with the metric that it was chosen by."""
        metric = self.run.options.best_metric
        value = f"{self.best['acc1']:.2f} %" if metric == "acc1" else f"{METRICS[metric]} {self.best[metric]:.4f}"
        return f"best {value} (epoch {self.best['epoch']})"

    def begin_epoch(self, epoch: int) -> None:
        """Sets the position to the start of an epoch."""
        self.epoch, self.batch, self.seconds = epoch, 0, 0.0
        self.losses.values.clear()
        self.skipped.clear()

    def end_epoch(self, entry: dict[str, Any]) -> bool:
        """Notes an epoch's entry of the log, advances the schedule and turns to the next epoch.

        Returns:
            Whether the epoch is the best so far.
        """
        metric = self.run.options.best_metric
        score, least = watched(entry, metric), self.best.get(metric, 0.0)
        is_best = score > least or self.best["epoch"] < 0
        if self.run.network.keeps_best and self.run.options.protocol == "published":
            is_best = score >= least
        if is_best:
            self.best = {"epoch": self.epoch} | {name: watched(entry, name) for name in METRICS}
        entry |= {f"best_{name}": value for name, value in self.best.items()} | {"best_metric": metric}
        self.history.append(entry)
        self.scheduler.step(self.epoch, watched(entry))
        self.begin_epoch(self.epoch + 1)
        return is_best

    def save(self, *paths: Path) -> None:
        """Writes a checkpoint of the training as it stands, to each of the paths in turn; all processes take part.

        Without --output-dir nothing is written.
        """
        if not self.run.options.output_dir:
            return
        run, tokenizer = self.run, self.run.start.tokenizer
        self.losses.check()
        parts = gather(
            {
                "random": random_state(run.processes.device),
                "threads": torch.get_num_threads(),
                "losses": torch.tensor(self.losses.values, dtype=torch.float64),
                "skipped": [list(image) for image in self.skipped.values()],
            }
        )
        with failing_together():
            if not run.processes.is_main:
                return
            checkpoint = Checkpoint(
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                lr_scheduler=self.scheduler.state_dict(),
                scaler=self.scaler.state_dict(),
                model_ema=self.ema.module.state_dict() if self.ema else None,
                epoch=self.epoch - 1,
                step=self.batch,
                epoch_seconds=self.seconds,
                processes=parts,
                best=self.best,
                history=self.history,
                args=vars(run.options),
                class_names=list(run.data["train"].class_names),
                bert_config=run.start.bert_config,
                vocabulary_sha256=tokenizer.sha256 if tokenizer else None,
                from_published=self.follows_file or None,
                lower_case=tokenizer.lower_case if tokenizer else None,
            )
            write_checkpoint(paths, checkpoint.as_dict())

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Brings the training to where a checkpoint was written."""
        resume = self.run.options.resume
        try:
            self._restore(checkpoint)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(
                f"--resume {resume}: expected a training's state as this code writes it, found another "
                f"({type(error).__name__}: {error}); start from its weights with --finetune"
            ) from error
        where = f"epoch {self.epoch} is next"
        if self.batch:
            where = f"epoch {self.epoch} continues after {self.batch} of {self.num_batches} batches"
        print0(f"resumed {resume}: {where}, {self.told_best}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Puts each part of the training into the state that the checkpoint has."""
        options, source = self.run.options, f"--resume {self.run.options.resume}"
        say_changed_options(vars(options), checkpoint.args, source)
        if checkpoint.optimizer is None:
            print0(f"{source}: has weights only: optimizer and schedule start fresh, with epoch {self.epoch}")
            if self.epoch:
                self.scheduler.step(self.epoch - 1, 0.0)
            return
        published = self.model if checkpoint.is_published else None
        load_optimizer_state(self.optimizer, checkpoint.optimizer, source, published=published)
        if self.scaler.is_enabled() and checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        if self.ema and checkpoint.model_ema:
            load_state(self.ema.module, checkpoint.model_ema, f"{source}: model_ema")
        self.best.update(checkpoint.best or {})
        self.history.extend(checkpoint.history)
        averaged = checkpoint.args.get("model_ema", False)
        if options.protocol == "val" and self.best["epoch"] >= 0 and averaged != options.model_ema:
            raise UserError(
                f"{source}: its best epoch was chosen {'with' if averaged else 'without'} --model-ema: do the same, as "
                "--protocol val compares epochs"
            )
        chosen_by = checkpoint.args.get("best_metric", "acc1")
        if self.best["epoch"] >= 0 and chosen_by != options.best_metric:
            raise UserError(
                f"{source}: its best epoch was chosen by {shown(chosen_by)}, found --best-metric "
                f"{options.best_metric}: give the same, or start from its weights with --finetune"
            )
        if checkpoint.epoch is None:
            print0(f"{source}: does not say its epoch; the run starts at --start-epoch")
        self.begin_epoch(options.start_epoch if checkpoint.epoch is None else checkpoint.epoch + 1)
        self.follows_file = checkpoint.is_published and bool(checkpoint.lr_scheduler)
        if self.follows_file:
            self._take_schedule(checkpoint, source)
        else:
            print0(f"{source}: learning rates and schedule follow the command line")
            self._restore_schedule()
        self._restore_position(checkpoint, source)

    def _take_schedule(self, checkpoint: Checkpoint, source: str) -> None:
        """Goes on with the schedule of the published script's file, as that script does."""
        own, other = self.run.options.sched, checkpoint.args.get("sched", self.run.options.sched)
        if own != other:
            raise UserError(f"{source}: expected a schedule --sched {own}, found {shown(other)}; give the same --sched")
        assert checkpoint.lr_scheduler is not None
        load_schedule(self.scheduler, checkpoint.lr_scheduler, source, epochs=self.run.options.epochs)
        rate = self.optimizer.param_groups[0]["lr"]
        print0(
            f"{source}: of the published script: learning rate {rate:.3g}, weight decay, betas and schedule are the "
            "file's, not the command line's"
        )

    def _restore_schedule(self) -> None:
        """Advances a fresh schedule through the finished epochs, with the figures it was advanced with."""
        for entry in self.history:
            self.scheduler.step(entry["epoch"], watched(entry))
        if not self.history and self.epoch:  # a published checkpoint, or one of a run that began with --start-epoch
            self.scheduler.step(self.epoch - 1, self.best["acc1"])

    def _restore_position(self, checkpoint: Checkpoint, source: str) -> None:
        """The place in the epoch and the random numbers; with other processes or batches, the nearest place."""
        options, processes, states = self.run.options, self.run.processes, checkpoint.processes
        if not states:
            print0(f"{source}: has no random states; data order and augmentation continue with --seed")
            return
        images_done = checkpoint.step * checkpoint.args.get("batch_size", options.batch_size) * len(states)
        batch = images_done // (options.batch_size * processes.world_size)
        self.batch = self.num_batches if batch >= self.num_batches else batch - batch % options.grad_accum_steps
        self.seconds = checkpoint.epoch_seconds
        own = states[processes.rank % len(states)]
        self.losses.values = own["losses"].tolist()
        self.skipped.update((index, BadImage(index, *image)) for index, *image in own["skipped"])
        threads = torch.get_num_threads()
        if own["threads"] != threads:
            print0(
                f"warning: the checkpoint was written with {own['threads']} threads a process, this run has {threads}: "
                "results may differ in the last bits; OMP_NUM_THREADS sets them"
            )
        if len(states) == processes.world_size:
            set_random_state(own["random"], processes.device)
            return
        print0(
            f"warning: {len(states)} processes wrote the checkpoint and {processes.world_size} continue: the order of "
            "the data and the random numbers differ from a run that was not interrupted; the learning rate follows "
            f"--lr, --batch-size and {processes.world_size} processes"
        )


def say_changed_options(now: dict[str, Any], saved: dict[str, Any], source: str) -> None:
    """Tells which options that shape the training differ from those of the checkpoint."""
    changed = [name for name in now.keys() - NOT_OF_THE_TRAINING if name in saved and saved[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} {now[name]} (was {shown(saved[name])})" for name in sorted(changed))
        print0(f"{source}: options that differ from the checkpoint's: {told}")


def watched(entry: dict[str, Any], metric: str = "acc1") -> float:
    """A metric in an entry of the log on the split that the epochs are compared on."""
    return entry[f"val_{metric}"] if f"val_{metric}" in entry else entry[f"test_{metric}"]


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
