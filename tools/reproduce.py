"""Fills the paper's tables with what is at hand, beside the published figures, and says what could not be run.

    python tools/reproduce.py --data-root DATA --weights WEIGHTS            # evaluates the checkpoints that it finds
    python tools/reproduce.py --data-root DATA --weights WEIGHTS --train    # and trains what is missing
    python tools/reproduce.py --data-root DATA --train --only main alpha_2 --seeds 0 1 2

DATA has the folders SER_Dataset, FI and EmotionROI, as far as they are there. WEIGHTS has checkpoints named as the
experiments (`lora.pth`, `lora_v.pth`, ...) and the backbone's `pvt_small.pth`, from which training starts. The
experiments are the files of configs/paper. Runs go on where they stopped; results/tables.md, .csv, .json and .tex are
written anew after each.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/reproduce.py` finds the project's modules

import torch

from runtime.option_types import natural, positive_int
from tools.benchmark.measure import machine
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
from tools.tables.running import Job, NotRun, Workshop, fill, stand_in, training_command
from tools.tables.writing import Row, Rows, write_tables
from utils import UserError

Results = dict[Job, dict[str, Any] | str]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("weights"),
        metavar="DIR",
        help="folder of checkpoints and of pvt_small.pth (default: weights)",
    )
    parser.add_argument("--train", action="store_true", help="train what has no checkpoint")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tables or rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0], help="of the trainings (default: 0)")
    parser.add_argument("--protocol", choices=PROTOCOLS, nargs="+", help="only rows of it (default: each row's own)")
    parser.add_argument("--bert-model", default="", metavar="NAME", help="text encoder, as for main.py")
    parser.add_argument("--experiments", type=Path, default=ROOT / "configs" / "paper", metavar="DIR")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="run in small, as configs/paper_demo.py says")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="where runs lie")
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="where tables go")
    parser.add_argument("--jobs", type=positive_int, default=1, help="runs side by side, the cores shared (default: 1)")
    parser.add_argument(
        "--launcher", default="", metavar="WORDS", help="what starts a script, as in 'torchrun --nproc_per_node=2'"
    )
    return parser


def jobs_of(
    tables: Sequence[Table], everything: Sequence[Table], same: dict[str, str], options: argparse.Namespace
) -> dict[str, list[Job]]:
    """The jobs that fill each experiment's rows, by the experiment's name; see `Settings` for `same`."""
    known, jobs = originals(everything), {}
    for row in (row for table in tables for row in table.rows):
        same_as = same.get(row.name, row.same_as)
        jobs[row.name] = [
            Job(known[same_as] if same_as else row, protocol, seed)
            for protocol in row.protocols
            if options.protocol is None or protocol in options.protocol
            for seed in options.seeds
        ]
    return jobs


def gather(tables: Sequence[Table], jobs: dict[str, list[Job]], results: Results, shop: Workshop) -> Rows:
    """The rows of each table with what is known so far, one for each protocol of an experiment."""
    rows: Rows = {table.name: [] for table in tables}
    for table in tables:
        for one in table.rows:
            for protocol in dict.fromkeys(job.protocol for job in jobs[one.name]):
                own = [job for job in jobs[one.name] if job.protocol == protocol]
                rows[table.name].append(row_of(one, own, results, shop))
    return rows


def row_of(one: Experiment, jobs: Sequence[Job], results: Results, shop: Workshop) -> Row:
    """The row of the jobs that differ in their seed alone; one that failed makes it say so."""
    first, found = jobs[0], {job.seed: results.get(job, "not yet") for job in jobs}
    failed = [value for value in found.values() if isinstance(value, str)]
    runs_here = first.experiment.script and stand_in(first.experiment, shop.settings) is not None
    told = shlex.join(["python", *training_command(first, shop)]) if runs_here else ""
    return Row(titled(one, shop.settings), first.protocol, failed[0] if failed else found, hidden_root(told))


def hidden_root(text: str) -> str:
    """A command as one types it in the project's folder, so that tables name no folder of one machine."""
    return text.replace(f"{ROOT}{os.sep}", "")


def titled(one: Experiment, settings: Settings) -> Experiment:
    """The experiment with a title that names the model which took the place of its own."""
    model = stand_in(one, settings)
    return one if model in (None, one.model) else one._replace(title=f"{one.title} ({model} in its place)")


def attempt(job: Job, shop: Workshop) -> dict[str, Any] | str:
    """The figures of a job, or why there are none."""
    try:
        return fill(job, shop)
    except NotRun as error:
        return str(error)


def finished(jobs: Sequence[Job], shop: Workshop, at_once: int) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """Fills jobs, `at_once` of them side by side, and gives each with what came out."""
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(attempt, job, shop): job for job in jobs}
        try:
            for one in as_completed(running):
                yield running[one], one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def open_workshop(options: argparse.Namespace, settings: Settings) -> Workshop:
    """Where runs find what they need; raises UserError for a folder that is not there, or the wrong one."""
    if Path.cwd() != ROOT:  # from where configs name their weights
        raise UserError(f"run it in the project's folder: cd {ROOT}")
    for flag, folder in (("--data-root", options.data_root), ("--weights", options.weights)):
        if not folder.is_dir():
            raise UserError(f"{flag} {folder}: no such folder")
    return Workshop(
        settings=settings,
        data_root=options.data_root,
        weights=options.weights,
        runs=options.runs,
        bert_model=options.bert_model,
        launcher=options.launcher,
        threads=max((os.cpu_count() or 1) // options.jobs, 1),
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
    everything, settings = read_tables(options.experiments), read_settings(options.settings)
    tables = choose(everything, options.only)
    shop = open_workshop(options, settings)
    torch.set_num_threads(shop.threads)
    on_cuda = torch.cuda.is_available()
    facts = machine("cuda" if on_cuda else "cpu") | {"threads": shop.threads, "comparable": settings.is_published}
    facts["command"] = hidden_root(shlex.join(["python", "tools/reproduce.py", *words]))
    facts["cost_device"] = "a GPU" if on_cuda else f"a CPU, threads: {shop.threads}"
    jobs = jobs_of(tables, everything, settings.same, options)
    distinct = list(dict.fromkeys(job for several in jobs.values() for job in several))
    results: Results = {}
    for job, found in finished(distinct, shop, options.jobs):
        results[job] = found
        said = f"not run: {found}" if isinstance(found, str) else f"top-1 {found['acc1']:.2f} %"
        name = f"{job.experiment.name}, {job.protocol}, seed {job.seed}"
        print(f"{len(results)}/{len(distinct)} {name}: {said}", flush=True)
        facts["minutes"] = (time.monotonic() - began) / 60
        write_tables(options.output, tables, gather(tables, jobs, results, shop), facts)
    print(f"written to {options.output / 'tables.md'}, .csv, .json and .tex")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
