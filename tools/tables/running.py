"""Fills a row: evaluates its checkpoint or trains, and collects the figures; or says why there are none."""

import json
import os
import re
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
from readers.images import PUBLISHED
from runtime.reports import read_predictions
from tools.benchmark.measure import ATTENTION_FLOPS
from tools.tables.annotators import ANNOTATOR, OTHERS, figures_of_annotators
from tools.tables.experiments import Experiment, Settings
from tools.tables.statistics import bootstrap, grouped_accuracy
from utils import UserError, read_json_lines, write_whole

ROUNDS = 5  # timed passes, of which the median counts
BATCH = 8
PAPER_BATCH_SIZE = "16"  # images a process; the flag's default is the published script's
HOG = "hog"
ANNOTATORS = (ANNOTATOR, OTHERS)
UNTRAINED = (HOG, "majority", *ANNOTATORS)  # their figures do not depend on the seed, and no epoch is chosen
FIGURES = ("acc1", "macro", "weighted", "per_class", "mean_average_precision", "samples", "correct")


class NotRun(Exception):
    """Why a row has no figures."""


class RunContext(NamedTuple):
    """What all runs share: their settings and folders.

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


class Job(NamedTuple):
    """One run of a row: its protocol and seed, and how images are read, '' for what a training reads by default.

    `evaluation` has the flags with which a checkpoint is evaluated once more, '' for its own evaluation.
    """

    experiment: Experiment
    protocol: str
    seed: int
    image_reading: str = ""
    evaluation: str = ""

    def __str__(self) -> str:
        flags = [self.evaluation, self.image_reading and reading_flag(self.image_reading)]
        return ", ".join([self.experiment.name, self.protocol, f"seed {self.seed}", *filter(None, flags)])

    def checkpoint(self, context: RunContext) -> Path | None:
        """The file in --weights that it evaluates; None if it trains."""
        one, path = self.experiment, context.weights / f"{self.experiment.name}.pth"
        is_first = bool(one.script) and self.protocol == one.protocols[0]
        return path if context.settings.is_published and is_first and path.is_file() else None

    def data_path(self, context: RunContext) -> Path:
        """The folder of its data set."""
        return context.data_root / (self.experiment.folder or context.settings.data[self.experiment.dataset])

    def run_folder(self, context: RunContext) -> Path:
        """Where it is trained."""
        return context.runs / self.experiment.name / f"{self.protocol}-{self.seed}"

    def evaluation_folder(self, folder: Path) -> Path:
        """Where the figures of `evaluation` are, in the folder of its checkpoint's own figures."""
        return folder / re.sub(r"\W+", "_", self.evaluation).strip("_")

    def start_weights(self, context: RunContext) -> Path | None:
        """The file that a training of PVT starts from, as published; other settings name it in their config."""
        if context.settings.is_published and self.experiment.start == "pvt":
            return context.weights / f"{self.experiment.backbone}.pth"
        return None

    def command(self, context: RunContext) -> list[str]:
        """What its training and its evaluations have in common: the script and its flags."""
        one, settings = self.experiment, context.settings
        words = [one.script, "--config", settings.config or f"configs/pvt/{one.backbone}.py"]
        words += ["--dataset", one.dataset, "--data-path", str(self.data_path(context)), "--seed", str(self.seed)]
        if settings.is_published:
            words += ["--batch-size", PAPER_BATCH_SIZE]
        if model := stand_in(one, settings):
            words += ["--model", model]
        if one.start != "pvt":
            words += ["--visfinetune", ""]  # the config may name weights of PVT
        if one.script == "main.py" and context.bert_model:
            words += ["--bert-model", context.bert_model]
        return [*words, *shlex.split(settings.flags), *shlex.split(one.flags)]

    def training_command(self, context: RunContext) -> list[str]:
        """The script and flags that train it."""
        if self.experiment.model == HOG:
            file = self.run_folder(context) / "hog"
            files = ["--json", f"{file}.json", "--csv", f"{file}.csv"]
            return ["-m", "tools.baselines", str(self.data_path(context)), *files]
        words = [*self.command(context), "--protocol", self.protocol, "--resume", "auto"]
        if start := self.start_weights(context):
            words += ["--visfinetune", str(start)]
        elif context.settings.is_published and self.experiment.start == "timm":
            words.append("--pretrained")
        return [*words, "--output-dir", str(self.run_folder(context))]


def reading_flag(image_reading: str) -> str:
    """The flag of main.py for how images are read."""
    return f"--image-reading {image_reading}"


def stand_in(one: Experiment, settings: Settings) -> str | None:
    """The model that replaces an experiment's in these settings, '' for its script's own, None if there is none."""
    return settings.models.get(one.model or one.backbone, one.model)


def fill(job: Job, context: RunContext) -> dict[str, Any] | str:
    """The figures of a job, or why there are none: no data, no weights, or a run that failed."""
    one, settings = job.experiment, context.settings
    if not one.script:
        return "a figure of the literature"
    if stand_in(one, settings) is None:
        return f"{one.model or one.backbone} has no small form in these settings"
    data = job.data_path(context)
    if not data.is_dir():
        return f"no data: {data}"
    if one.model in ANNOTATORS:
        figures = figures_of_annotators(data, one.model)
        return figures | {"from": "the lists"} if figures else f"no three votes for a sticker of test in {data}"
    try:
        if checkpoint := job.checkpoint(context):
            name = "weights-published" if job.image_reading == PUBLISHED else "weights"
            folder = job.evaluation_folder(context.runs / one.name / name)
            return evaluated(job, context, checkpoint, folder) | {"from": str(checkpoint)}
        own = trained(job._replace(evaluation=""), context)
        if not job.evaluation:
            return own
        folder = job.run_folder(context)
        (checkpoint,) = folder.glob("checkpoint*_best.pth")
        return evaluated(job, context, checkpoint, job.evaluation_folder(folder)) | {"from": "training"}
    except NotRun as error:
        return str(error)


def evaluated(job: Job, context: RunContext, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """The figures of a checkpoint in a folder; it is evaluated again if it is newer than they are."""
    result = folder / f"{checkpoint.stem}_test.json"
    if not result.is_file() or result.stat().st_mtime < checkpoint.stat().st_mtime:
        (folder / "cost.json").unlink(missing_ok=True)
        evaluation = ["--resume", str(checkpoint), "--eval", "--output-dir", str(folder)]
        evaluation += shlex.split(reading_flag(job.image_reading)) if job.image_reading else []
        run([*job.command(context), *evaluation, *shlex.split(job.evaluation)], folder, context)
    return read_figures(result, checkpoint, context)


def trained(job: Job, context: RunContext) -> dict[str, Any]:
    """The figures of a training, which resumes where it stopped."""
    one, folder = job.experiment, job.run_folder(context)
    words = job.training_command(context)
    note, told = folder / "command.txt", shlex.join(words)
    if note.is_file() and note.read_text(encoding="utf-8") != told:
        raise NotRun(f"{folder} is of another command: remove it, or name another folder with --runs")
    pattern = {HOG: "hog.json", "majority": "checkpoint*_test.json"}.get(one.model, "checkpoint*_best_test.json")
    if not any(folder.glob(pattern)):
        if not context.train:
            raise NotRun(f"no {one.name}.pth in --weights, and without --train none is made")
        start = job.start_weights(context)
        if start and not start.is_file():
            raise NotRun(f"no {start}, from which training starts")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(note, told.encode())
        run(words, folder, context)
        if job.protocol == "published" and one.model not in UNTRAINED:  # whose run evaluates its last epoch at the end
            (best,) = folder.glob("checkpoint*_best.pth")
            run([*job.command(context), "--resume", str(best), "--eval"], folder, context)
    (result,) = folder.glob(pattern)
    checkpoint = None if one.model == HOG else result.with_name(result.name.replace("_test.json", ".pth"))
    return read_figures(result, checkpoint, context) | {"from": "training"}


def run(words: list[str], folder: Path, context: RunContext) -> None:
    """Runs a script with its flags, its output in run.log; raises NotRun with the last line of one that failed."""
    launcher = [] if words[0] == "-m" else shlex.split(context.launcher)
    words = [*(launcher or [sys.executable]), *words]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.log").open("a", encoding="utf-8") as log:
        print(f"$ {shlex.join(words)}", file=log, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(context.threads)}
        finished = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if finished.returncode in (130, 143):
        raise KeyboardInterrupt
    if finished.returncode:
        last = (folder / "run.log").read_text(encoding="utf-8").strip().splitlines()[-1]
        raise NotRun(f"{last.partition(': error: ')[2] or last} (see {folder / 'run.log'})")


def read_figures(result: Path, checkpoint: Path | None, context: RunContext) -> dict[str, Any]:
    """The test figures of a run with their intervals, and what the network costs; kept in cost.json of the folder.

    Raises:
        NotRun: files that an evaluation did not write.
    """
    folder = result.parent
    try:
        figures = json.loads(result.read_text(encoding="utf-8"))
        figures = figures.get(HOG, figures)  # tools/baselines.py writes the figures of two
        predicted = read_predictions(result.with_suffix(".csv"))
        cost = folder / "cost.json"
        if checkpoint and not cost.is_file():
            cost.write_text(json.dumps(measure_cost(checkpoint, context)), encoding="utf-8")
        record = {name: figures[name] for name in FIGURES}
        if "run" in figures:
            record["best_metric"] = figures["run"]["options"].get("best_metric", "acc1")
        if "context" in figures:  # of a network that reads topics
            record["context"] = str(figures["context"]["statement"])
        record |= json.loads(cost.read_text(encoding="utf-8")) if checkpoint else {}
    except (OSError, ValueError, KeyError, UserError) as error:
        raise NotRun(f"{result}: not what an evaluation writes: {error}") from error
    intervals = bootstrap(predicted.labels, predicted.predictions, len(predicted.class_names))
    record["intervals"] = {name: list(interval) for name, interval in intervals.items()}
    if context.settings.group:
        groups = [context.settings.group(image) for image in predicted.images]
        record["acc1_by_group"] = grouped_accuracy(groups, predicted.labels == predicted.predictions)
    if epochs := read_json_lines(folder / "log.txt"):
        record["minutes"] = sum(entry["train_seconds"] for entry in epochs) / 60
        record["best_val_acc1"] = max(entry.get("val_acc1", 0.0) for entry in epochs) or None
    return record


def measure_cost(checkpoint: Path, context: RunContext) -> dict[str, Any]:
    """Parameters, operations an image (a multiplication and an addition are two), and images a second, forward."""
    predictor = load_predictor(checkpoint, bert_model=context.bert_model)
    size, device = predictor.input_size, predictor.device
    inputs = [torch.zeros(BATCH, 3, size, size, device=device)]
    if predictor.tokenizer is not None:
        inputs += [torch.ones(BATCH, 30, dtype=torch.long, device=device) for _ in range(2)]
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        predictor.logits(*inputs)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        predictor.logits(*inputs)  # waits for the device, because it checks the logits
        seconds.append(time.perf_counter() - began)
    return {
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "operations": counter.get_total_flops() // BATCH,
        "images_per_second": BATCH / median(seconds),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
