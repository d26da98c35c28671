"""Fills the demo's table: networks, splits and ablations over several seeds, beside the baselines.

    python tools/demo_table.py                                # all of it; hours on two cores, goes on where it stopped
    python tools/demo_table.py --only lora_v lora --seeds 0   # some rows, one seed

Every run is configs/demo.py with the flags below, its epoch chosen on val, test once at the end. Runs lie in
runs/table/; the table is written to docs/results/demo/table.json and table.md after each run.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/demo_table.py` finds the project's modules

from runtime.reports import PredictionFile, read_predictions
from tools import make_demo_set
from tools.benchmark.measure import machine
from tools.demo_set.styles import emoji_of
from tools.make_demo_set import OUTPUTS, bert_folder
from utils import UserError, write_json, write_whole

RUNS = Path("runs/table")
OUTPUT = Path("docs/results/demo")


class Row(NamedTuple):
    """A row of the table: a network on a split of the demo set, with what differs from configs/demo.py."""

    title: str
    script: str
    split: str = "image"
    flags: tuple[str, ...] = ()


def locals_row(local: str) -> Row:
    return Row(f"LORA-V, locals {local}", "main_V.py", flags=("--locals", *local))


SCRATCH = Row("LORA-V, backbone not pretrained", "main_V.py", flags=("--visfinetune", ""))
PVT = Row("PVT, the backbone as a plain classifier", "main_V.py", flags=("--model", "pvt"))
LORA_V = Row("LORA-V", "main_V.py")
LORA = Row("LORA", "main.py")
ROWS = {
    "lora_v": LORA_V,
    "scratch": SCRATCH,
    "pvt": PVT,
    "lora": LORA,
    "lora_v_concept": LORA_V._replace(split="concept"),
    "scratch_concept": SCRATCH._replace(split="concept"),
    "pvt_concept": PVT._replace(split="concept"),
    "lora_concept": LORA._replace(split="concept"),
    "locals_0000": locals_row("0000"),
    "locals_0010": locals_row("0010"),
    "locals_0110": locals_row("0110"),
    "alpha_1": Row("LORA-V, alpha 1", "main_V.py", flags=("--alpha", "1")),
    "alpha_4": Row("LORA-V, alpha 4", "main_V.py", flags=("--alpha", "4")),
}


class Score(NamedTuple):
    """What a run reached, in percent, and how long its training took.

    `by_emoji` is the accuracy on test with each emoji counted alike: some have 41 pictures, others 5.
    """

    val: float
    test: float
    macro_f1: float
    by_emoji: float
    minutes: float


def run_folder(name: str, seed: int) -> Path:
    return RUNS / f"{name}-{seed}"


def run(row: Row, folder: Path, data: str, seed: int, threads: int) -> None:
    """Trains and evaluates a row on a set, going on from its newest checkpoint; keeps its output in run.log.

    Raises:
        UserError: it failed, with the last line that it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, row.script, "--config", "configs/demo.py", "--data-path", data]
    command += ["--output_dir", str(folder), "--seed", str(seed), "--resume", "auto", "--cache-images"]
    command += ["--num_workers", "0", *row.flags]
    if row.script == "main.py":
        command += ["--bert-model", str(bert_folder())]
    with (folder / "run.log").open("w", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if code.returncode:
        last = (folder / "run.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{row.title}, seed {seed}: {' '.join(last)}; see {folder / 'run.log'}")


def run_all(runs: Sequence[tuple[Row, Path, str, int]], jobs: int) -> Iterator[Path]:
    """Does those runs that are not finished, `jobs` side by side, and yields the folder of each that ends.

    Where one fails, no other is begun.
    """
    threads = threads_of(jobs)
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(run, row, folder, data, seed, threads): folder
            for row, folder, data, seed in runs
            if not read_score(folder)
        }
        try:
            for one in as_completed(running):
                one.result()
                yield running[one]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def threads_of(jobs: int) -> int:
    """How many threads each of so many runs has."""
    return max((os.cpu_count() or 1) // jobs, 1)


def read_score(folder: Path) -> Score | None:
    """The score of a finished run, or None."""
    found = list(folder.glob("checkpoint*_best_test.json"))
    if not found:
        return None
    figures = json.loads(found[0].read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()]
    seconds = sum(line["train_seconds"] for line in log)
    val = max(line["val_acc1"] for line in log)
    by_emoji = emoji_accuracy(read_predictions(found[0].with_suffix(".csv")))
    return Score(val, figures["acc1"], 100 * figures["macro"]["f1"], 100 * by_emoji, seconds / 60)


def emoji_accuracy(found: PredictionFile) -> float:
    """The mean over the emoji of the share of its pictures, in all styles, tones and genders, that are right."""
    right = defaultdict(list)
    for image, label, prediction in zip(found.images, found.labels, found.predictions, strict=True):
        right[emoji_of(Path(image).stem)].append(label == prediction)
    return mean(mean(map(float, one)) for one in right.values())


def baselines(split: str) -> dict[str, Any]:
    """Majority class and HOG on test, by tools/baselines.py, with the accuracy by emoji."""
    path = RUNS / f"baselines_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        files = ["--json", str(path), "--csv", str(path.with_suffix(".csv"))]
        command = [sys.executable, "tools/baselines.py", OUTPUTS[split], *files]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    scores, hog = json.loads(path.read_text(encoding="utf-8")), read_predictions(path.with_suffix(".csv"))
    majority = np.full_like(hog.labels, hog.class_names.index(scores["majority"]["class"]))
    scores["hog"]["by_emoji"] = emoji_accuracy(hog)
    scores["majority"]["by_emoji"] = emoji_accuracy(hog._replace(predictions=majority))
    return scores


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(scores: dict[str, dict[int, Score]], facts: dict[str, Any]) -> str:
    """The table as Markdown, a part for each split."""
    where = f"{facts['machine']}, threads a run: {facts['threads']}, {facts['date']}"
    lines = [f"`{facts['command']}`, {where}; figures in percent."]
    lines += ["By emoji: top-1 with each emoji counted alike, whether it has 5 pictures or 41."]
    for split in OUTPUTS:
        found = baselines(split)
        lines += ["", f"Split by {split}, {found['samples']['test']} images in test:", ""]
        lines += ["| | val top-1 | test top-1 | test macro F1 | test by emoji | training, min | seeds |"]
        lines += ["|---" * 7 + "|"]
        for name, title in (("majority", "majority class"), ("hog", "HOG + logistic regression")):
            one = found[name]
            figures = " | ".join(f"{100 * one[figure]:.2f}" for figure in ("accuracy", "macro_f1", "by_emoji"))
            lines.append(f"| {title} | | {figures} | | |")
        for name, row in ROWS.items():
            if row.split == split and scores.get(name):
                columns = [spread(values) for values in zip(*scores[name].values(), strict=True)]
                seeds = " ".join(map(str, scores[name]))
                lines.append(f"| {row.title} | {' | '.join(columns)} | {seeds} |")
    return "\n".join(lines) + "\n"


def write_table(seeds: Sequence[int], threads: int) -> None:
    """Writes the figures of all finished runs; `threads` is how many each run has."""
    scores = {name: {seed: score for seed in seeds if (score := read_score(run_folder(name, seed)))} for name in ROWS}
    facts = {"command": "python tools/demo_table.py", **machine("cpu"), "threads": threads}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    rows = {
        name: {
            "title": ROWS[name].title,
            "split": ROWS[name].split,
            "flags": list(ROWS[name].flags),
            "seeds": {str(seed): score._asdict() for seed, score in found.items()},
        }
        for name, found in scores.items()
        if found
    }
    write_json(OUTPUT / "table.json", {**facts, "rows": rows})
    write_whole(OUTPUT / "table.md", table(scores, facts).encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the table.

    Raises:
        UserError: a run that failed.
    """
    parser = argparse.ArgumentParser(description="Fills the demo's table over several seeds.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to run (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default: 2)")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    for split in OUTPUTS:
        make_demo_set.main(["--split", split])
    runs = [
        (ROWS[name], run_folder(name, seed), OUTPUTS[ROWS[name].split], seed)
        for name in options.only
        for seed in options.seeds
    ]
    for folder in run_all(runs, options.jobs):
        print(folder.name, read_score(folder), flush=True)
        write_table(options.seeds, threads_of(options.jobs))
    write_table(options.seeds, threads_of(options.jobs))
    print((OUTPUT / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"demo_table.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
