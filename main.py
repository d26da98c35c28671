"""Trains and evaluates LORA, as published:

    python -m torch.distributed.launch --nproc_per_node=2 --master_port=6666 --use_env main.py \\
      --config configs/pvt/pvt_small.py --visfinetune weights/pvt_small.pth --output_dir checkpoints/SER \\
      --dataset SER --data-path PATH --alpha 8 --batch-size 16 --locals 1 1 1 0

    python main.py --config configs/pvt/pvt_small.py --resume checkpoints/SER/checkpoint.pth --dataset SER \\
      --data-path PATH --batch-size 16 --alpha 8 --locals 1 1 1 0 --eval

`torchrun --nproc_per_node=2 main.py ...`, srun and plain `python main.py ...` work as well. `main_V.py` is LORA-V.
"""

import sys

if __name__ == "__main__":
    from runtime.surroundings import begin

    begin()

from runtime.options import METRICS, check_command_line, given_without_effect, parse_options

if __name__ == "__main__":
    check_command_line(sys.argv[1:])  # --help and a wrong flag end here, before PyTorch is loaded

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import nn

from datasets import BadImage
from engine import TextFeatures, compare_with_votes, compute_metrics, evaluate, merge_predictions, train_one_epoch
from readers.checkpoint import load_state, read_checkpoint
from readers.checkpoint_fields import Checkpoint
from runtime.boards import Board, boards
from runtime.launch import set_threads, start_processes
from runtime.loader import worker_death
from runtime.monitor import Monitor, ending_on_signals
from runtime.reports import Evaluation, evaluation_context, finish_report, log_entry, report, tell_blank_images
from runtime.setup import Run, build_run, keep_freed_memory
from runtime.state import Training, watched
from runtime.surroundings import CLOSED_PIPE, CTRL_C, ready
from utils import (
    OUTPUT,
    Interrupted,
    RunError,
    UserError,
    failing_together,
    gather,
    make_writable_folder,
    peer_failure,
    print0,
    read_json_lines,
    remove,
    set_aside,
    shortage,
    stop_processes,
    write_checkpoint,
    write_json,
    write_json_lines,
)


def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Runs one training or evaluation.

    Returns:
        The exit code: 0; 2 for a mistake of the user; 1 if something outside ended the run; 130 after Ctrl-C, 143
        after SIGTERM or SIGUSR1 and 141 if standard output was closed, with a checkpoint written if the run was
        training.
    """
    code = 1
    try:
        with ending_on_signals():
            code = end_in_a_line(sys.argv[1:] if argv is None else argv, defaults)
    finally:
        stop_processes(failed=code != 0)
    return code


def end_in_a_line(argv: Sequence[str], defaults: dict[str, Any]) -> int:
    """Runs; what ends the run early becomes a line and an exit code."""
    try:
        options = parse_options(argv, defaults)
        # Twice as patient as the watchdog, which can say more than a collective that waits in vain.
        processes = start_processes(options.device, options.dist_url, timeout=2 * options.timeout)
        print0(f"threads: {set_threads()}")
        if flags := given_without_effect(argv, options):
            print0(f"{', '.join(flags)}: without effect, as in the published script")
        run = build_run(options, processes)
        if options.eval:
            evaluate_checkpoint(run, options.resume or options.finetune)
        elif run.network.learns:
            train(run)
        else:
            count_classes(run)
    except UserError as error:
        return say("error", str(error), code=2)
    except RunError as error:
        return say("error", str(error), code=1)
    except Interrupted as error:
        if not OUTPUT["is_read"]:
            return say("stopped", "nobody reads its output any more", code=CLOSED_PIPE)
        return say("stopped", "by a signal", code=error.exit_code)
    except KeyboardInterrupt:
        return say("stopped", "by Ctrl-C", code=CTRL_C)
    except (RuntimeError, OSError, MemoryError) as error:
        if (explanation := explain_error(error)) is None:
            raise
        return say("stopped", explanation, code=1)
    return 0


def say(what: str, message: str, *, code: int) -> int:
    """Prints why a run ended, on one line; returns the exit code."""
    print(f"{Path(sys.argv[0]).name}: {what}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def explain_error(error: Exception) -> str | None:
    """What an error of PyTorch or of the system tells a user; None if it is a defect of this code."""
    if isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error):
        return "out of GPU memory: lower --batch-size, or use --grad-checkpointing or --amp-dtype"
    return peer_failure(error) or worker_death(error) or shortage(error)


def train(run: Run) -> None:
    """Trains to the last epoch, with a checkpoint, a line of log and an evaluation after each.

    The published protocol evaluates on test each time and reports the running maximum; the protocol `val` chooses the
    epoch on val and evaluates on test once, at the end.

    Raises:
        Interrupted: a signal came; the last step was finished and a checkpoint written.
    """
    options, main_boards = run.options, []
    with failing_together():
        training = Training(run)
        prepare_folder(run, training)
    with Monitor(options, run.processes, trains=True) as monitor:
        with failing_together():
            if run.processes.is_main:
                main_boards = monitor.enter_context(boards(options, training.epoch))
        try:
            while not training.is_over:
                train_epoch(run, training, monitor)
                evaluate_epoch(run, training, monitor, main_boards)
        except Interrupted:
            training.save(run.checkpoint_path())
            written = "checkpoint written" if options.output_dir else "nothing saved without --output-dir"
            print0(f"stopped by a signal in epoch {training.epoch} after {training.batch} batches, {written}")
            raise
        finish(run, training, monitor, main_boards)


def prepare_folder(run: Run, training: Training) -> None:
    """Makes the output folder, if there is to be one, with the run's options; a log of another run is set aside."""
    options, folder = run.options, Path(run.options.output_dir)
    if options.output_dir:
        make_writable_folder(folder)
    if training.is_over and not (options.output_dir and run.checkpoint_path().is_file()):
        early = f", --early-stop {options.early_stop}" if options.early_stop else ""
        raise UserError(
            f"--resume {options.resume}: has finished epoch {training.epoch - 1}, and --epochs is {options.epochs}"
            f"{early}: raise --epochs to train on, or use --eval"
        )
    if not options.output_dir:
        return
    best = run.checkpoint_path("_best")
    if training.evaluates_best and training.best["epoch"] >= 0 and not best.is_file():
        raise UserError(
            f"--output-dir {folder}: expected {best.name}, the best epoch {training.best['epoch']} of the resumed run, "
            f"which --protocol {options.protocol} evaluates at the end: copy it from where that run wrote"
        )
    if run.processes.is_main:
        log = folder / "log.txt"
        written = read_json_lines(log)
        if written != training.history[: len(written)]:
            set_aside(log)
        if training.history:
            write_json_lines(log, training.history)
        write_json(folder / "options.json", run.facts)


def train_epoch(run: Run, training: Training, monitor: Monitor) -> None:
    """Trains to the end of the epoch under way; every --checkpoint-steps steps, and on a signal, a checkpoint."""
    options, done = run.options, training.batch
    began = time.monotonic() - training.seconds
    every = (options.checkpoint_steps or 0) * options.grad_accum_steps

    def after_step(batches_done: int) -> None:
        training.batch, training.seconds = batches_done, time.monotonic() - began
        if training.ema:
            training.ema.update(training.model)
        monitor.after_step()
        if every and batches_done % every == 0:
            training.save(run.checkpoint_path())

    loader = run.train_loader
    run.train_sampler.set_epoch(training.epoch, first_batch=done)
    train_one_epoch(
        training.parallel,
        training.criterion,
        monitor.batches(loader, f"epoch {training.epoch}", training.skipped, done=done, describe=training.progress),
        training.stepper(after_step),
        training.precision,
        training.losses,
        num_batches=len(loader),
        first_batch=done,
    )


def evaluate_epoch(run: Run, training: Training, monitor: Monitor, main_boards: list[Board]) -> None:
    """Evaluates the epoch that was trained, notes it in the log, and writes its checkpoints, the best one first.

    The log is written last, from the history that the checkpoint holds, so that it is never ahead of it.
    """
    options, epoch, speed = run.options, training.epoch, monitor.speed.figures()
    split = "test" if options.protocol == "published" else "val"
    evaluation = measure(run, training.measured, split, monitor)
    entry = log_entry(training, split, evaluation, speed)
    is_best = training.end_epoch(entry)
    print0(
        f"epoch {epoch}: loss {entry['train_loss']:.4f}, accuracy {watched(entry):.2f} %, {training.told_best}, "
        f"{entry['train_seconds']:.0f} s"
    )
    if training.is_over and training.epoch < options.epochs:
        print0(f"--early-stop {options.early_stop}: no better epoch since epoch {entry['best_epoch']}")
    if not options.output_dir:
        return
    names = ["_best"] * is_best + [f"_epoch{epoch:04d}"] * (options.keep > 0) + [""]
    training.save(*map(run.checkpoint_path, names))
    with failing_together():
        if run.processes.is_main:
            write_json_lines(Path(options.output_dir) / "log.txt", training.history)
            for board in main_boards:
                board.numbers(entry)
            for number in range(epoch - options.keep, -1, -1) if options.keep else ():
                path = run.checkpoint_path(f"_epoch{number:04d}")
                if not path.exists():
                    break  # those before were removed in their turn
                remove(path)


def finish(run: Run, training: Training, monitor: Monitor, main_boards: list[Board]) -> None:
    """The test figures of the run: of the best epoch on val; as published, of the last epoch or TGCA-PVT's best."""
    is_chosen = training.evaluates_best
    path = run.checkpoint_path("_best" if is_chosen else "")
    if is_chosen:
        training.optimizer.state.clear()  # as large as what is read now
        is_at_hand = training.best["epoch"] == training.epoch - 1
        with failing_together():
            if run.processes.is_main and not is_at_hand:
                best = read_checkpoint(path, "checkpoint")
                load_state(training.measured, best.model_ema or best.model, str(path))
                best.drop_tensors()
        if dist.is_initialized():
            for tensor in training.measured.state_dict().values():
                dist.broadcast(tensor, 0)
    evaluation = measure(run, training.measured, "test", monitor)
    report(run, evaluation, "test", path, path.parent if run.options.output_dir else None)
    if run.processes.is_main and run.options.output_dir:
        finish_report(run, training.measured, training.history, evaluation, path, main_boards)
    if run.options.protocol == "published":
        metric = METRICS[run.options.best_metric]
        print0(f"the best {metric} above is the maximum over epochs on test, as published: it is optimistic")


def count_classes(run: Run) -> None:
    """What the majority class has in place of a training: the counts of train, then the figures on test."""
    data, path = run.data["train"], run.checkpoint_path()
    run.model.counts += torch.bincount(torch.tensor(data.labels), minlength=len(data.class_names)).to(run.model.counts)
    if not run.options.output_dir:
        with Monitor(run.options, run.processes, trains=False) as monitor:
            report(run, measure(run, run.model, "test", monitor), "test", path, None)
        return
    with failing_together():
        make_writable_folder(path.parent)
        if run.processes.is_main:
            write_json(path.parent / "options.json", run.facts)
            content = Checkpoint(run.model.state_dict(), args=vars(run.options), class_names=list(data.class_names))
            write_checkpoint([path], content.as_dict())
    evaluate_checkpoint(run, path)


def evaluate_checkpoint(run: Run, path: str | Path) -> None:
    """The figures of the model that came from a checkpoint, written beside it or into --output-dir."""
    options, is_address = run.options, "://" in str(path)
    checkpoint = Path(urlsplit(str(path)).path if is_address else path)
    folder = Path(options.output_dir) if options.output_dir else checkpoint.parent
    with failing_together():
        if is_address and not options.output_dir:
            raise UserError("--output-dir is missing: name the folder for the figures of a checkpoint that is fetched")
        make_writable_folder(folder)
    with Monitor(options, run.processes, trains=False) as monitor:
        evaluation = measure(run, run.model, options.eval_split, monitor)
    report(run, evaluation, options.eval_split, checkpoint, folder)


def measure(run: Run, model: nn.Module, split: str, monitor: Monitor) -> Evaluation:
    """Evaluates the model on a split, each sample once, and gives the result to every process.

    Raises:
        Interrupted: a signal came; the evaluation has to be repeated.
    """
    dataset, skipped = run.data[split], dict[int, BadImage]()
    texts = TextFeatures(model, dataset, run.options.batch_size).of if dataset.words is not None else None
    predictions = evaluate(
        model,
        monitor.batches(run.eval_loader(split), split, skipped, together=True),
        run.precision,
        num_classes=len(dataset.class_names),
        text_features=texts,
    )
    if run.options.dist_eval:
        parts, skipped_parts = zip(*gather((predictions, skipped)), strict=True)
        predictions = merge_predictions(parts)
        skipped = {index: image for part in skipped_parts for index, image in part.items()}
    if not len(predictions.labels):
        raise UserError(f"{split}: none of its {len(dataset)} images can be read: tools/check_dataset.py says why")
    not_scored = [{"image": skipped[index].path, "reason": skipped[index].reason} for index in sorted(skipped)]
    if not_scored:
        print0(f"{split}: {len(not_scored)} of {len(dataset)} images were not scored, as they cannot be read")
    tell_blank_images(dataset, split, run.blank_images)
    metrics = compute_metrics(predictions.logits, predictions.labels, dataset.class_names)
    if dataset.vote_shares is not None:
        metrics["votes"] = compare_with_votes(predictions.logits, dataset.vote_shares[predictions.indices])
    return Evaluation(metrics, predictions, not_scored, evaluation_context(run, split, predictions))


if __name__ == "__main__":
    keep_freed_memory()
    ready()
    sys.exit(main())
