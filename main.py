"""Trains and evaluates LORA, as published:

    python -m torch.distributed.launch --nproc_per_node=2 --master_port=6666 --use_env main.py \
      --config configs/pvt/pvt_small.py --visfinetune weights/pvt_small.pth --output_dir checkpoints/SER \
      --dataset SER --data-path PATH --alpha 8 --batch-size 16 --locals 1 1 1 0

    python main.py --config configs/pvt/pvt_small.py --resume checkpoints/SER/checkpoint.pth --dataset SER \
      --data-path PATH --batch-size 16 --alpha 8 --locals 1 1 1 0 --eval

`torchrun --nproc_per_node=2 main.py ...`, srun and plain `python main.py ...` work as well. `main_V.py` is LORA-V.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from engine import train_one_epoch
from readers.checkpoint import load_state, read_checkpoint
from runtime.boards import boards
from runtime.loader import read_batches, worker_death
from runtime.monitor import StopSignals, Watchdog, ending_on_signals, profiling, progress
from runtime.options import parse_options
from runtime.reports import evaluate_checkpoint, measure, noting_skipped, report
from runtime.setup import (
    Run,
    amp_dtype,
    build_criterion,
    build_mixup,
    build_run,
    build_train_loader,
    keep_freed_memory,
    memory_format,
)
from runtime.state import Training, save, start_training, watched_accuracy
from runtime.weights import checkpoint_name
from utils import (
    Interrupted,
    RunError,
    UserError,
    failing_together,
    gather,
    largest,
    make_writable_folder,
    peer_failure,
    print0,
    read_json_lines,
    remove,
    set_aside,
    start_processes,
    stop_processes,
    write_checkpoint,
    write_json,
    write_json_lines,
)


def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Runs one training or evaluation.

    Returns:
        The exit code: 0; 2 for a mistake of the user; 1 where something outside ended the run; 130 after Ctrl-C and 143
        after SIGTERM or SIGUSR1, with a checkpoint written where the run was training.
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
        run = build_run(options, processes)
        evaluate_checkpoint(run, options.resume) if options.eval else train(run)
    except UserError as error:
        return say("error", str(error), code=2)
    except RunError as error:
        return say("error", str(error), code=1)
    except Interrupted as error:
        return say("stopped", "by a signal", code=error.exit_code)
    except KeyboardInterrupt:
        return say("stopped", "by Ctrl-C", code=130)
    except RuntimeError as error:
        if (explanation := explain(error)) is None:
            raise
        return say("stopped", explanation, code=1)
    return 0


def say(what: str, message: str, *, code: int) -> int:
    """Prints why a run ended, on one line; returns the exit code."""
    print(f"{Path(sys.argv[0]).name}: {what}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def explain(error: RuntimeError) -> str | None:
    """What an error of PyTorch tells a user; None where it is a defect of this code."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory: lower --batch-size, or use --grad-checkpointing or --amp-dtype"
    return peer_failure(error) or worker_death(error)


SAMPLES_SHOWN = 4  # images of test whose overlays a board gets


def train(run: Run) -> None:
    """Trains to the last epoch, with a checkpoint, a line of log and an evaluation after each.

    The published protocol evaluates on test each time and reports the running maximum; the protocol `val` chooses the
    epoch on val and evaluates on test once, at the end.

    Raises:
        Interrupted: a signal came; the last step was finished and a checkpoint written.
    """
    options, processes = run.options, run.processes
    if options.model == "majority":
        count_classes(run)
        return
    with failing_together():
        loader = build_train_loader(options, processes, run.data["train"])
        training = start_training(run, loader)
        prepare_folder(run, training)
    with ExitStack() as contexts:
        stop = contexts.enter_context(StopSignals(speaks=processes.is_main))
        watchdog = contexts.enter_context(
            Watchdog(options.timeout, rank=processes.rank, world_size=processes.world_size, store=processes.store)
        )
        trace = options.profile if processes.is_main else None
        profiled = contexts.enter_context(profiling(trace, Path(options.output_dir) / "trace.json"))
        with failing_together():
            if processes.is_main:
                training.boards = contexts.enter_context(boards(options, training.epoch))
        try:
            while training.epoch < options.epochs:
                train_epoch(run, training, loader, watchdog=watchdog, stop=stop, profiled=profiled)
                evaluate_epoch(run, training, watchdog=watchdog, stop=stop)
        except Interrupted:
            save(run, training, [checkpoint_name(options)])
            print0(f"stopped by a signal in epoch {training.epoch} after {training.batch} batches, checkpoint written")
            raise
        finish(run, training, watchdog=watchdog, stop=stop)


def count_classes(run: Run) -> None:
    """What the majority class has in place of a training: the counts of train, then the figures on test."""
    options, data = run.options, run.data["train"]
    run.model.counts += torch.bincount(torch.tensor(data.labels), minlength=len(data.class_names)).to(run.model.counts)
    path = Path(options.output_dir) / checkpoint_name(options)
    with failing_together():
        make_writable_folder(path.parent)
        if run.processes.is_main:
            write_json(path.parent / "options.json", run.facts)
            content = {"model": run.model.state_dict(), "args": vars(options), "class_names": list(data.class_names)}
            write_checkpoint(path, content)
    evaluate_checkpoint(run, path)


def prepare_folder(run: Run, training: Training) -> None:
    """The output folder with the run's options; a log that is not this run's is set aside."""
    folder = Path(run.options.output_dir)
    make_writable_folder(folder)
    if training.epoch >= run.options.epochs and not (folder / checkpoint_name(run.options)).is_file():
        raise UserError(
            f"--resume {run.options.resume}: has finished epoch {training.epoch - 1}, and --epochs is "
            f"{run.options.epochs}: raise --epochs to train on, or use --eval"
        )
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


def train_epoch(
    run: Run,
    training: Training,
    loader: DataLoader,
    *,
    watchdog: Watchdog,
    stop: StopSignals,
    profiled: Callable[[], None],
) -> None:
    """Trains to the end of the epoch under way; every --checkpoint-steps steps, and on a signal, a checkpoint."""
    options, processes = run.options, run.processes
    began = time.monotonic() - training.seconds
    every = (options.checkpoint_steps or 0) * options.grad_accum_steps

    def after_step(batches_done: int) -> None:
        training.batch, training.seconds = batches_done, time.monotonic() - began
        if training.ema:
            training.ema.update(training.model)
        profiled()
        if exit_code := largest(stop.exit_code):
            raise Interrupted(exit_code)
        if every and batches_done % every == 0:
            save(run, training, [checkpoint_name(options)])

    mixup = build_mixup(options, len(run.data["train"].class_names))
    title, done, total = f"epoch {training.epoch}", training.batch, len(loader)
    loader.batch_sampler.set_epoch(training.epoch, first_batch=done)
    batches = watchdog.watched(read_batches(loader), title, start=done)
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
            for board in training.boards:
                board.numbers(entry)
            for number in range(epoch - options.keep, -1, -1) if options.keep else ():
                path = folder / checkpoint_name(options, f"_epoch{number:04d}")
                if not path.exists():
                    break  # those before were removed in their turn
                remove(path)


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
    with failing_together():
        if run.processes.is_main:
            draw_figures(run, training, {"split": "test", **evaluation.metrics})
            describe(path, run.options.bert_model)
    if not chosen:
        print0("the best accuracy above is the maximum over epochs on test, as published: it is optimistic")


def describe(checkpoint: Path, bert_model: str) -> None:
    """Writes the model card beside a checkpoint; that it cannot be written does not fail a training that is done."""
    from runtime.model_card import write_card_beside  # reads checkpoints itself, which a run needs at its end alone

    try:
        print0(f"model card: {write_card_beside(checkpoint, bert_model)}")
    except UserError as error:
        print0(f"warning: no model card: {error}")


def draw_figures(run: Run, training: Training, metrics: dict[str, Any]) -> None:
    """The training curves and the confusion matrix on test, as PNG; with what the network looked at, for the boards."""
    if not (run.options.figures or training.boards):
        return
    from runtime import figures  # matplotlib takes a second to import, which a run without figures need not spend

    folder, epoch = Path(run.options.output_dir), training.epoch - 1
    drawn = {"curves": figures.curves(training.history), "confusion_matrix": figures.confusion_matrix(metrics)}
    for board in training.boards:
        for name, figure in [*drawn.items(), *overlays(run, training)]:
            board.figure(name, figure, epoch)
    for name, figure in drawn.items():
        figures.save_figure(figure, [folder / f"{name}.png"] if run.options.figures else [])


def overlays(run: Run, training: Training) -> Iterator[tuple[str, Any]]:
    """What the network looked at in the first images of test that can be read, as figures with names."""
    from inference.explain import explain
    from inference.overlay import explanation_figure
    from inference.predictor import Predictor

    data = run.data["test"]
    predictor = Predictor(
        training.measured, run.options, data.class_names, run.start.get("tokenizer"), run.processes.device
    )
    for sample in data.samples[:SAMPLES_SHOWN] if predictor.selects_patches else ():
        with suppress(UserError):
            yield f"looked at/{sample.path.name}", explanation_figure(explain(predictor, sample.path, sample.text))


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
