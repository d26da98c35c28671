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

from errors import UserError
from predictor import load_predictor
from tools.benchmark_measure import ATTENTION_FLOPS
from tools.paper_tables.experiments import Experiment, Settings
from utils.predictions import read_predictions
from utils.statistics import bootstrap

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
    weights: Path | None
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
    checkpoint = shop.weights and shop.weights / f"{one.name}.pth"
    if checkpoint and checkpoint.is_file() and job.protocol == one.protocols[0]:
        folder = shop.runs / one.name / "weights"
        if not any(folder.glob("*_test.json")):
            run([*command(job, shop), "--resume", str(checkpoint), "--eval", "--output-dir", str(folder)], folder, shop)
        return figures(folder, checkpoint, shop) | {"from": str(checkpoint)}
    folder = shop.runs / one.name / f"{job.protocol}-{job.seed}"
    chosen = "_best_test.json" if one.model != "majority" else "_test.json"
    if not any(folder.glob(f"checkpoint*{chosen}")):
        if not shop.train:
            raise NotRun(f"no {one.name}.pth in --weights, and without --train none is made")
        run([*command(job, shop), *training_flags(job, shop), "--output-dir", str(folder)], folder, shop)
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


def command(job: Job, shop: Workshop) -> list[str]:
    """What every run of a job has in common."""
    one = job.experiment
    words = [*(shlex.split(shop.launcher) or [sys.executable]), one.script]
    words += ["--config", shop.settings.config or f"configs/pvt/{one.backbone}.py"]
    words += ["--dataset", one.dataset, "--data-path", str(data_path(job, shop)), "--seed", str(job.seed)]
    if model := stand_in(one, shop.settings):
        words += ["--model", model]
    if one.start != "pvt":
        words += ["--visfinetune", ""]  # which the config may have, for PVT
    if one.script == "main.py" and shop.bert_model:
        words += ["--bert-model", shop.bert_model]
    return [*words, *shlex.split(shop.settings.flags), *shlex.split(one.flags)]


def training_flags(job: Job, shop: Workshop) -> list[str]:
    """What a training has besides: protocol, resumption, and as published the weights that it starts from."""
    words = ["--protocol", job.protocol, "--resume", "auto"]
    if shop.settings.is_published and job.experiment.start == "pvt":
        name = f"{job.experiment.backbone}.pth"
        path = shop.weights and shop.weights / name
        if not path or not path.is_file():
            raise NotRun(f"no {name} in --weights, from which training starts")
        words += ["--visfinetune", str(path)]
    elif shop.settings.is_published and job.experiment.start == "timm":
        words.append("--pretrained")
    return words


def run(words: list[str], folder: Path, shop: Workshop) -> None:
    """Runs a command, its output in run.log of the folder; raises NotRun with the last line of one that failed."""
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
