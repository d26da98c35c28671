"""Trains and evaluates LORA, as published:

    python -m torch.distributed.launch --nproc_per_node=2 --master_port=6666 --use_env main.py \\
      --config configs/pvt/pvt_small.py --visfinetune weights/pvt_small.pth --output_dir checkpoints/SER \\
      --dataset SER --data-path PATH --alpha 8 --batch-size 16 --locals 1 1 1 0

    python main.py --config configs/pvt/pvt_small.py --resume checkpoints/SER/checkpoint.pth --dataset SER \\
      --data-path PATH --batch-size 16 --alpha 8 --locals 1 1 1 0 --eval

`torchrun --nproc_per_node=2 main.py ...`, srun and plain `python main.py ...` work as well. `main_V.py` is LORA-V.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import datasets
from build import (
    amp_dtype,
    build_criterion,
    build_data,
    build_eval_loader,
    build_mixup,
    build_model,
    build_optimizer,
    build_scheduler,
    build_train_loader,
    check_options,
    read_start,
)
from engine import evaluate, merge_predictions, train_one_epoch
from errors import UserError
from options import parse_options
from utils.checkpoint import load_state, read_checkpoint, write_checkpoint
from utils.distributed import Processes, failing_together, gather, peer_has_ended, start_processes, stop_processes
from utils.logging import append_json_line, describe_run, make_writable_folder, print0, progress, set_aside, write_json
from utils.metrics import compute_metrics, format_metrics


def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Runs one training or evaluation; returns the exit code, 2 for a mistake of the user."""
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv, defaults)
        processes = start_processes(options.device, options.dist_url)
        run(options, processes)
    except UserError as error:
        one_line = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {one_line}", file=sys.stderr, flush=True)
        return 2
    except RuntimeError as error:
        if not peer_has_ended(error):
            raise
        print(
            f"{Path(sys.argv[0]).name}: stopped, as another process has ended; it says why", file=sys.stderr, flush=True
        )
        return 1
    finally:
        stop_processes()
    return 0


class Run(NamedTuple):
    """What a run is made of."""

    options: argparse.Namespace
    processes: Processes
    model: nn.Module
    start: dict[str, Any]
    data: dict[str, datasets.StickerDataset]
    facts: dict[str, Any]


def run(options: argparse.Namespace, processes: Processes) -> None:
    """Builds what the options ask for, then evaluates or trains."""
    with failing_together():
        check_options(options)
        for set_seed in (torch.manual_seed, np.random.seed, random.seed):
            set_seed(options.seed + processes.rank)
        start = read_start(options)
        data = build_data(options, start)
        model = build_model(options, start, len(next(iter(data.values())).class_names)).to(processes.device)
        built = Run(options, processes, model, start, data, describe_run(vars(options)))
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print0(f"{options.model}: {learning:,} parameters learn, on {processes.world_size} x {processes.device}")
    if options.eval:
        evaluate_checkpoint(built)
    else:
        train(built)


def measure(built: Run, split: str) -> dict[str, Any]:
    """The metrics of the model as it is on a split, each sample counted once, on every process."""
    options, processes, dataset = built.options, built.processes, built.data[split]
    loader = build_eval_loader(options, processes, dataset)
    with failing_together():
        predictions = evaluate(
            built.model,
            progress(datasets.batches(loader), total=len(loader), title=split, every=options.log_every),
            device=processes.device,
            num_classes=len(dataset.class_names),
            amp_dtype=amp_dtype(options, processes.device),
        )
    if options.dist_eval:
        predictions = merge_predictions(gather(predictions))
    return compute_metrics(predictions.logits, predictions.labels, dataset.class_names)


def report(built: Run, split: str, checkpoint: Path, folder: Path) -> None:
    """Prints the metrics of a checkpoint on a split and writes them as JSON into a folder."""
    metrics = measure(built, split)
    print0(f"{split} of {built.options.dataset}, {checkpoint}:\n{format_metrics(metrics)}")
    with failing_together():
        if built.processes.is_main:
            path = folder / f"{checkpoint.stem}_{split}.json"
            write_json(path, {"checkpoint": checkpoint.name, "split": split, **metrics, "run": built.facts})
            print0(f"written to {path}")


def evaluate_checkpoint(built: Run) -> None:
    """--eval: the metrics of the checkpoint that --resume names, written beside it or into --output-dir."""
    checkpoint = Path(built.options.resume)
    folder = Path(built.options.output_dir) if built.options.output_dir else checkpoint.parent
    with failing_together():
        make_writable_folder(folder)
    report(built, built.options.eval_split, checkpoint, folder)


class Training(NamedTuple):
    """What changes while a run trains, and what changes it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    best: dict[str, float]


def train(built: Run) -> None:
    """Trains to the last epoch, with a checkpoint, a line of log and an evaluation after each.

    The published protocol evaluates on test each time and reports the running maximum; the protocol `val` chooses the
    epoch on val and evaluates on test once, at the end.
    """
    options, processes = built.options, built.processes
    watched = "test" if options.protocol == "published" else "val"
    folder = Path(options.output_dir)
    with failing_together():
        loader, sampler = build_train_loader(options, processes, built.data["train"])
        training, start_epoch = prepare(built)
        make_writable_folder(folder)
        if processes.is_main:
            if start_epoch == 0:
                set_aside(folder / "log.txt")
            write_json(folder / "options.json", built.facts)
    for epoch in range(start_epoch, options.epochs):
        sampler.set_epoch(epoch)
        entry = train_epoch(built, training, loader, epoch)
        metrics = measure(built, watched)
        entry |= {f"{watched}_acc1": metrics["acc1"], f"{watched}_loss": metrics["loss"]}
        entry[f"{watched}_macro_f1"] = metrics["macro"]["f1"]
        training.scheduler.step(epoch, metrics["acc1"])
        finish_epoch(built, training, folder, watched, entry)
    finish(built, folder)


def prepare(built: Run) -> tuple[Training, int]:
    """Optimizer, schedule and scaler, fresh or as the checkpoint of --resume has them, and the first epoch."""
    options, processes, start = built.options, built.processes, built.start
    optimizer = build_optimizer(options, built.model, processes.world_size)
    scheduler = build_scheduler(options, optimizer)
    scaled = amp_dtype(options, processes.device) == torch.float16
    scaler = torch.amp.GradScaler(processes.device.type, enabled=scaled)
    start_epoch, best = options.start_epoch, {"acc1": 0.0, "epoch": -1}
    if options.resume:
        restore_optimizer(optimizer, start, options.resume)
        if scaled and start.get("scaler"):
            scaler.load_state_dict(start["scaler"])
        start_epoch = start.get("epoch", options.start_epoch - 1) + 1
        best = start.get("best", best)
        print0(f"resumed {options.resume}: epoch {start_epoch} is next, best {best['acc1']:.2f} %")
    if start_epoch:
        scheduler.step(start_epoch - 1, best["acc1"])
    model = built.model
    if processes.world_size > 1:
        device_ids = [processes.device.index] if processes.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=device_ids)
    return Training(model, optimizer, scheduler, scaler, dict(best)), start_epoch


def restore_optimizer(optimizer: torch.optim.Optimizer, start: dict[str, Any], path: str) -> None:
    """Loads the optimizer's moments; the learning rate comes from the schedule."""
    if "optimizer" not in start:
        raise UserError(f"--resume {path}: has weights only, no optimizer to continue with; start with --finetune")
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(start["optimizer"])
    except (ValueError, KeyError) as error:
        raise UserError(f"--resume {path}: its optimizer does not fit ({error}); check --opt and --tunebert") from error
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def train_epoch(built: Run, training: Training, loader: Any, epoch: int) -> dict[str, Any]:
    """One epoch of training; returns its line of the log."""
    options, processes = built.options, built.processes
    began = time.monotonic()
    dataset = built.data["train"]
    mixup = build_mixup(options, len(dataset.class_names))
    rate = training.optimizer.param_groups[0]["lr"]
    loss = train_one_epoch(
        training.model,
        build_criterion(options, mixup),
        progress(datasets.batches(loader), total=len(loader), title=f"epoch {epoch}", every=options.log_every),
        training.optimizer,
        device=processes.device,
        scaler=training.scaler,
        amp_dtype=amp_dtype(options, processes.device),
        clip_grad=options.clip_grad,
        mixup=mixup,
        sample_names=[sample.path for sample in dataset.samples],
    )
    losses = gather(loss)
    seconds = round(time.monotonic() - began, 2)
    return {"epoch": epoch, "lr": rate, "train_loss": sum(losses) / len(losses), "train_seconds": seconds}


def finish_epoch(built: Run, training: Training, folder: Path, watched: str, entry: dict[str, Any]) -> None:
    """Notes the best epoch, writes the checkpoints and the log's line."""
    options, epoch, accuracy = built.options, entry["epoch"], entry[f"{watched}_acc1"]
    is_best = accuracy > training.best["acc1"] or training.best["epoch"] < 0
    if is_best:
        training.best.update(acc1=accuracy, epoch=epoch)
    entry |= {"best_acc1": training.best["acc1"], "best_epoch": training.best["epoch"]}
    print0(
        f"epoch {epoch}: loss {entry['train_loss']:.4f}, {watched} {accuracy:.2f} %, "
        f"best {training.best['acc1']:.2f} % (epoch {training.best['epoch']}), {entry['train_seconds']:.0f} s"
    )
    with failing_together():
        if built.processes.is_main:
            checkpoint = {
                "model": built.model.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "lr_scheduler": training.scheduler.state_dict(),
                "scaler": training.scaler.state_dict(),
                "epoch": epoch,
                "best": training.best,
                "args": vars(options),
                "class_names": list(built.data["train"].class_names),
                "bert_config": built.start.get("bert_config"),
                "vocabulary_sha256": getattr(built.start.get("tokenizer"), "sha256", None),
            }
            names = [checkpoint_name(options, "")] + [checkpoint_name(options, "_best")] * is_best
            for name in names:
                write_checkpoint(folder / name, checkpoint)
            append_json_line(folder / "log.txt", entry)


def checkpoint_name(options: argparse.Namespace, which: str) -> str:
    """`checkpoint.pth` or `checkpoint_v.pth` for the last epoch, `_best` before the dot for the best one."""
    return f"checkpoint{'_v' if options.model == 'lora_v' else ''}{which}.pth"


def finish(built: Run, folder: Path) -> None:
    """The test figures of the run: of the best epoch on val, or, as published, of the last epoch."""
    if built.options.protocol == "published":
        report(built, "test", folder / checkpoint_name(built.options, ""), folder)
        print0("the best accuracy above is the maximum over epochs on test, as published: it is optimistic")
        return
    path = folder / checkpoint_name(built.options, "_best")
    with failing_together():
        if built.processes.is_main:
            load_state(built.model, read_checkpoint(path, "checkpoint")["model"], str(path))
    if dist.is_initialized():
        for tensor in built.model.state_dict().values():
            dist.broadcast(tensor, 0)
    report(built, "test", path, folder)


if __name__ == "__main__":
    sys.exit(main())
