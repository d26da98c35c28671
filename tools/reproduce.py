"""Fills tables with what is there, beside the published figures, and says why a row could not be run.

    python tools/reproduce.py --data-root DATA --weights WEIGHTS            # evaluates the checkpoints in WEIGHTS
    python tools/reproduce.py --data-root DATA --weights WEIGHTS --train    # and trains what is missing
    python tools/reproduce.py --data-root DATA --train --only main alpha_2 --seeds 0 1 2

DATA has the folders SER_Dataset, FI and EmotionROI, or some of them. WEIGHTS has checkpoints named as the experiments
(`lora.pth`, `lora_v.pth`, ...) and the backbone's `pvt_small.pth`, from which training starts. The experiments are the
files of configs/paper; --settings names a file that runs them, or experiments of its own, on other data (configs/
paper_demo.py, demo_table.py, demo_selection.py). Runs resume where they stopped. tables.md, .csv, .json and .tex are
written again after each run.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain, groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project's modules

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


import torch

from readers.images import PUBLISHED, READINGS
from runtime.launch import usable_cores
from runtime.option_types import natural, positive_int
from tools.benchmark.measure import machine
from tools.start import start
from tools.tables.experiments import (
    PROTOCOLS,
    Experiment,
    Settings,
    Table,
    choose,
    originals,
    read_settings,
    read_tables,
)
from tools.tables.running import ANNOTATORS, UNTRAINED, Job, RunContext, fill, reading_flag, stand_in
from tools.tables.writing import COLUMNS, Row, Rows, score_column, write_tables
from utils import UserError

PAPER = ROOT / "configs" / "paper"
Results = dict[Job, dict[str, Any] | str]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    parser.add_argument("--data-root", **folder, required=True, help="folder of the data sets")
    parser.add_argument(
        "--weights", **folder, default=Path("weights"), help="checkpoints and pvt_small.pth (default: weights)"
    )
    parser.add_argument("--train", action="store_true", help="train what has no checkpoint")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tables or rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0], help="of the trainings (default: 0)")
    parser.add_argument("--protocol", choices=PROTOCOLS, nargs="+", help="only its rows (default: each row's own)")
    parser.add_argument("--bert-model", default="", metavar="NAME", help="text encoder, as for main.py")
    parser.add_argument("--experiments", **folder, help="files of experiments (default: the settings', configs/paper)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="how and on what data to run the experiments")
    parser.add_argument("--runs", **folder, help="folder of the runs (default: runs/reproduce, or runs/SETTINGS)")
    parser.add_argument("--output", **folder, help="folder of the tables (default: results, or results/SETTINGS)")
    parser.add_argument("--jobs", type=positive_int, default=1, help="runs side by side, the cores shared (default: 1)")
    parser.add_argument(
        "--launcher", default="", metavar="WORDS", help="what starts a script, as in 'torchrun --nproc_per_node=2'"
    )
    return parser


def jobs_of(
    tables: Sequence[Table], everything: Sequence[Table], options: argparse.Namespace, context: RunContext
) -> dict[str, list[Job]]:
    """The jobs that fill each experiment's rows, by the experiment's name.

    A checkpoint is evaluated with images on white and with images as published, a row each.
    """
    known, same, jobs = originals(everything), context.settings.same, {}
    for row in (row for table in tables for row in table.rows):
        original = known[same.get(row.name, row.same_as) or row.name]
        first = [
            Job(original, protocol, seed, evaluation=row.evaluation)
            for protocol in row.protocols
            if options.protocol is None or protocol in options.protocol
            for seed in (options.seeds[:1] if original.model in UNTRAINED else options.seeds)
        ]
        jobs[row.name] = [job for job in first if not job.checkpoint(context)]
        evaluated = [job for job in first if job.checkpoint(context)]
        jobs[row.name][:0] = [job._replace(image_reading=reading) for reading in READINGS for job in evaluated[:1]]
    return jobs


def gather(tables: Sequence[Table], jobs: dict[str, list[Job]], results: Results, context: RunContext) -> Rows:
    """The rows of each table with what is known so far, one for each protocol and image reading of an experiment."""
    rows: Rows = {table.name: [] for table in tables}
    for table in tables:
        for one in table.rows:
            for _, same in groupby(jobs[one.name], key=lambda job: job._replace(seed=0)):
                rows[table.name].append(row_of(one, list(same), results, context))
    return rows


def row_of(one: Experiment, jobs: Sequence[Job], results: Results, context: RunContext) -> Row:
    """The row of jobs that differ only in their seed; if one has no figures, it gives the reason."""
    first, outcomes = jobs[0], {job.seed: results.get(job, "not yet") for job in jobs}
    reasons = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    is_run = first.experiment.script and first.experiment.model not in ANNOTATORS
    runs_here = is_run and stand_in(first.experiment, context.settings) is not None
    command = shlex.join(["python", *first.training_command(context)]) if runs_here else ""
    if (model := stand_in(one, context.settings)) not in (None, one.model):
        one = one._replace(title=f"{one.title} ({model} in its place)")
    if first.image_reading == PUBLISHED:
        one = one._replace(title=f"{one.title} ({reading_flag(PUBLISHED)})")
    return Row(one, first.protocol, reasons[0] if reasons else outcomes, hide_root(command))


def hide_root(text: str) -> str:
    """A command as typed in the project's folder, so that tables name no folder of one machine."""
    return text.replace(f"{ROOT}{os.sep}", "")


def fill_all(jobs: Sequence[Job], context: RunContext, at_once: int) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """Fills jobs, `at_once` of them side by side, and yields each with its outcome."""
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(fill, job, context): job for job in jobs}
        try:
            for one in as_completed(running):
                yield running[one], one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_context(options: argparse.Namespace, settings: Settings) -> RunContext:
    """What all runs share; raises UserError for a missing folder, or if this is not the project's folder."""
    if Path.cwd() != ROOT:  # configs name their weights from there
        raise UserError(f"run it in the project's folder: cd {ROOT}")
    for flag, folder in (("--data-root", options.data_root), ("--weights", options.weights)):
        if not folder.is_dir():
            raise UserError(f"{flag} {folder}: no such folder")
    return RunContext(
        settings=settings,
        data_root=options.data_root,
        weights=options.weights,
        runs=options.runs or Path("runs", options.settings.stem if options.settings else "reproduce"),
        bert_model=options.bert_model,
        launcher=options.launcher,
        threads=max(min(usable_cores(), torch.get_num_threads()) // options.jobs, 1),  # OMP_NUM_THREADS may say fewer
        train=options.train,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what can be run and writes the tables after each run.

    Raises:
        UserError: a name or file of experiments that is wrong, a folder that is not there.
    """
    began = time.monotonic()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(words)
    settings, own_tables = read_settings(options.settings)
    everything = own_tables if own_tables and not options.experiments else read_tables(options.experiments or PAPER)
    tables = choose(everything, options.only)
    context = make_context(options, settings)
    output = options.output or Path("results", options.settings.stem if options.settings else "")
    torch.set_num_threads(context.threads)
    on_cuda = torch.cuda.is_available()
    facts = machine("cuda" if on_cuda else "cpu") | {"threads": context.threads, "comparable": settings.is_published}
    facts |= {
        "command": hide_root(shlex.join(["python", "tools/reproduce.py", *words])),
        "cost_device": "a GPU" if on_cuda else f"a CPU, threads: {context.threads}",
        "columns": settings.columns or COLUMNS,
    }
    jobs = jobs_of(tables, everything, options, context)
    distinct = list(dict.fromkeys(job for several in jobs.values() for job in several))
    first = list(dict.fromkeys(job._replace(evaluation="") for job in distinct))
    rounds = first, [job for job in distinct if job.evaluation]  # which needs the checkpoint of the first round
    results: Results = {}
    score = score_column(facts["columns"])
    figure = {"top-1": "acc1", "val top-1": "best_val_acc1"}[score]
    for job, outcome in chain.from_iterable(fill_all(one, context, options.jobs) for one in rounds):
        results[job] = outcome
        said = f"not run: {outcome}" if isinstance(outcome, str) else f"{score} {outcome[figure]:.2f} %"
        facts["minutes"] = (time.monotonic() - began) / 60
        write_tables(output, tables, gather(tables, jobs, results, context), facts)
        print(f"{len(results)}/{sum(map(len, rounds))} {job}: {said}", flush=True)
    print(f"written to {output / 'tables.md'}, .csv, .json and .tex")


if __name__ == "__main__":
    start(main)
