"""Fills a row: evaluates the checkpoint that is there, or trains, and gathers the figures; or says why not."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from inference.predictor import load_predictor
from runtime.reports import read_predictions
from tools.benchmark.measure import ATTENTION_FLOPS
from tools.tables.experiments import Experiment, Settings
from tools.tables.statistics import bootstrap
from utils import UserError, write_whole

ROUNDS = 5  # timed passes, of which the median counts

BATCH = 8


class Job(NamedTuple):
    """One run of a row: its protocol and seed."""

    experiment: Experiment
    protocol: str
    seed: int


class Workshop(NamedTuple):
    """Where runs find what they need and leave what they make.

    Attributes:
        launcher: what starts a script, such as torchrun; threads: of each run on a CPU.
        train: whether what is missing is trained.
    """

    settings: Settings
    data_root: Path
    weights: Path
    runs: Path
    bert_model: str
    launcher: str
    threads: int
    train: bool


class NotRun(Exception):
    """Why a row has no figures."""


def fill(job: Job, shop: Workshop) -> dict[str, Any]:
    """The figures of a job.

    Raises:
        NotRun: no data, no weights, or a run that failed.
    """
    one, settings = job.experiment, shop.settings
    if not one.script:
        raise NotRun("a figure of the literature")
    if stand_in(one, settings) is None:
        raise NotRun(f"{one.model or one.backbone} has no small form in these settings")
    data = data_path(job, shop)
    if not data.is_dir():
        raise NotRun(f"no data: {data}")
    checkpoint = shop.weights / f"{one.name}.pth"
    if checkpoint.is_file() and job.protocol == one.protocols[0]:
        return evaluated(job, shop, checkpoint)
    return trained(job, shop)


def evaluated(job: Job, shop: Workshop, checkpoint: Path) -> dict[str, Any]:
    """The figures of a checkpoint that is there, evaluated anew where it is newer than its figures."""
    folder = shop.runs / job.experiment.name / "weights"
    result = folder / f"{checkpoint.stem}_test.json"
    if not result.is_file() or result.stat().st_mtime < checkpoint.stat().st_mtime:
        (folder / "cost.json").unlink(missing_ok=True)
        run([*command(job, shop), "--resume", str(checkpoint), "--eval", "--output-dir", str(folder)], folder, shop)
    return figures(folder, checkpoint, shop) | {"from": str(checkpoint)}


def trained(job: Job, shop: Workshop) -> dict[str, Any]:
    """The figures of a training, which goes on where it stopped."""
    one, folder = job.experiment, run_folder(job, shop)
    words = training_command(job, shop)
    note, told = folder / "command.txt", shlex.join(words)
    if note.is_file() and note.read_text(encoding="utf-8") != told:
        raise NotRun(f"{folder} is of another command: remove it, or name another folder with --runs")
    chosen = "_best_test.json" if one.model != "majority" else "_test.json"
    if not any(folder.glob(f"checkpoint*{chosen}")):
        if not shop.train:
            raise NotRun(f"no {one.name}.pth in --weights, and without --train none is made")
        start = start_weights(job, shop)
        if start and not start.is_file():
            raise NotRun(f"no {start}, from which training starts")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(note, told.encode())
        run(words, folder, shop)
        if job.protocol == "published" and one.model != "majority":  # whose run evaluates its last epoch at the end
            (best,) = folder.glob("checkpoint*_best.pth")
            run([*command(job, shop), "--resume", str(best), "--eval"], folder, shop)
    (found,) = folder.glob(f"checkpoint*{chosen}")
    return figures(folder, found.with_name(found.name.replace("_test.json", ".pth")), shop) | {"from": "training"}


def stand_in(one: Experiment, settings: Settings) -> str | None:
    """The model that takes an experiment's place in these settings, '' for its script's own, None for none."""
    return settings.models.get(one.model or one.backbone, one.model)


def data_path(job: Job, shop: Workshop) -> Path:
    """The folder of a job's data set."""
    return shop.data_root / shop.settings.data[job.experiment.dataset]


def run_folder(job: Job, shop: Workshop) -> Path:
    """Where a job is trained."""
    return shop.runs / job.experiment.name / f"{job.protocol}-{job.seed}"


def start_weights(job: Job, shop: Workshop) -> Path | None:
    """The file that a training of PVT starts from, as published; other settings have it in their config."""
    if shop.settings.is_published and job.experiment.start == "pvt":
        return shop.weights / f"{job.experiment.backbone}.pth"
    return None


def command(job: Job, shop: Workshop) -> list[str]:
    """What every run of a job has in common: the script and its flags."""
    one = job.experiment
    words = [one.script, "--config", shop.settings.config or f"configs/pvt/{one.backbone}.py"]
    words += ["--dataset", one.dataset, "--data-path", str(data_path(job, shop)), "--seed", str(job.seed)]
    if model := stand_in(one, shop.settings):
        words += ["--model", model]
    if one.start != "pvt":
        words += ["--visfinetune", ""]  # which the config may have, for PVT
    if one.script == "main.py" and shop.bert_model:
        words += ["--bert-model", shop.bert_model]
    return [*words, *shlex.split(shop.settings.flags), *shlex.split(one.flags)]


def training_command(job: Job, shop: Workshop) -> list[str]:
    """The script and flags that train a job."""
    words = [*command(job, shop), "--protocol", job.protocol, "--resume", "auto"]
    if start := start_weights(job, shop):
        words += ["--visfinetune", str(start)]
    elif shop.settings.is_published and job.experiment.start == "timm":
        words.append("--pretrained")
    return [*words, "--output-dir", str(run_folder(job, shop))]


def run(words: list[str], folder: Path, shop: Workshop) -> None:
    """Runs a script with its flags, its output in run.log; raises NotRun with the last line of one that failed."""
    words = [*(shlex.split(shop.launcher) or [sys.executable]), *words]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.log").open("a", encoding="utf-8") as log:
        print(f"$ {shlex.join(words)}", file=log, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(shop.threads)}
        finished = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if finished.returncode in (130, 143):
        raise KeyboardInterrupt
    if finished.returncode:
        last = (folder / "run.log").read_text(encoding="utf-8").strip().splitlines()[-1]
        raise NotRun(f"{last.partition(': error: ')[2] or last} (see {folder / 'run.log'})")


def figures(folder: Path, checkpoint: Path, shop: Workshop) -> dict[str, Any]:
    """The test figures of a run with their intervals, and what the network costs; kept in cost.json of the folder.

    Raises:
        NotRun: files that an evaluation did not write.
    """
    result = folder / f"{checkpoint.stem}_test.json"
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        predicted = read_predictions(result.with_suffix(".csv"))
        log = folder / "log.txt"
        epochs = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
        cost = folder / "cost.json"
        if not cost.is_file():
            cost.write_text(json.dumps(measure_cost(checkpoint, shop)), encoding="utf-8")
        names = ("acc1", "macro", "weighted", "per_class", "mean_average_precision", "samples", "correct")
        record = {name: found[name] for name in names} | json.loads(cost.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, UserError) as error:
        raise NotRun(f"{result}: not what an evaluation writes: {error}") from error
    intervals = bootstrap(predicted.labels, predicted.predictions, len(predicted.class_names))
    record["intervals"] = {name: list(interval) for name, interval in intervals.items()}
    if epochs:
        record["minutes"] = sum(entry["train_seconds"] for entry in epochs) / 60
        record["best_val_acc1"] = max((entry.get("val_acc1", 0.0) for entry in epochs), default=0.0) or None
    return record


def measure_cost(checkpoint: Path, shop: Workshop) -> dict[str, Any]:
    """Parameters, operations an image (a multiplication and an addition are two), and images a second, forward."""
    predictor = load_predictor(checkpoint, bert_model=shop.bert_model)
    size, device = predictor.options.input_size, predictor.device
    inputs = [torch.zeros(BATCH, 3, size, size, device=device)]
    if predictor.tokenizer is not None:
        inputs += [torch.ones(BATCH, 30, dtype=torch.long, device=device) for _ in range(2)]
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        predictor.logits(*inputs)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        predictor.logits(*inputs)  # waits for the device, as it looks at the logits
        seconds.append(time.perf_counter() - began)
    return {
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "operations": counter.get_total_flops() // BATCH,
        "images_per_second": BATCH / median(seconds),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
