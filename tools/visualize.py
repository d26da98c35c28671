"""Draws what a network looked at, or the figures of a run folder:

    python tools/visualize.py weights/lora_v_demo.pth sticker.png --output pictures
    python tools/visualize.py runs/demo/checkpoint_best.pth sticker.png --text "so happy" --format png pdf
    python tools/visualize.py runs/demo                        # into the folder itself

For an image: heat maps of the patches that each stage selected (the share of heads) and of the class token's attention,
the probabilities, and the words' weights. For a run: training curves, confusion matrix, metrics by class, reliability
diagram, a map of the fused features and the most confident mistakes. If the folder has baselines_test.json (see
tools/baselines.py), the test metrics are printed beside the baselines'.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/visualize.py` finds the project's modules

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from inference.explain import explain, keep_result
from inference.lettering import label
from inference.overlay import explanation_figure
from inference.predictor import Predictor, load_predictor
from models import names_where
from readers.data_sets import DATA_SETS
from readers.images import RGB_ON_WHITE, read_image
from runtime import figures
from runtime.reports import read_predictions
from tools.start import start
from utils import UserError, make_writable_folder

BASELINES = {"majority": "majority class", "hog": "HOG + logistic regression"}
MISTAKES = 24
BATCH = 32  # for the feature map
FEWEST, ROUNDING = 5, 1e-6  # images that t-SNE places, and how far their features are apart


class Sample(NamedTuple):
    """A line of a predictions file: the image's path, the true class, the predicted class and its probability."""

    path: Path
    truth: str
    guess: str
    confidence: float


class RunFolder(NamedTuple):
    """The files of a run: log, options, and the test metrics and predictions of its best (or last) checkpoint."""

    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    samples: list[Sample]
    options: dict[str, Any]
    checkpoint: Path


def read_run(folder: Path) -> RunFolder:
    """Reads a run folder; raises UserError if a file is missing or is not what a run writes."""
    stems = sorted(path.name.removesuffix("_test.json") for path in folder.glob("checkpoint*_test.json"))
    stem = max(stems, key=lambda name: name.endswith("_best"), default=None)
    if not (folder / "log.txt").is_file():
        raise UserError(f"{folder / 'log.txt'}: no such file; give the output folder of a training")
    if stem is None:
        raise UserError(f"{folder}: no checkpoint_best_test.json; run the evaluation (--eval) first")
    try:
        log = [json.loads(line) for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()]
        metrics = json.loads((folder / f"{stem}_test.json").read_text(encoding="utf-8"))
        options = json.loads((folder / "options.json").read_text(encoding="utf-8"))["options"]
        root = DATA_SETS[options["dataset"]].images_root(options["data_path"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: expected the files of a run, found {error!r}; evaluate it again") from error
    table = read_predictions(folder / f"{stem}_test.csv")
    rows = zip(table.images, table.labels, table.predictions, table.probabilities, strict=True)
    names = table.class_names
    samples = [Sample(root / image, names[label], names[guess], p[guess]) for image, label, guess, p in rows]
    return RunFolder(log, metrics, samples, options, folder / f"{stem}.pth")


def run_figures(run: RunFolder, device: str) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """The names of a run's figures with the functions that draw them; those that read the images come last."""
    confidence = np.array([one.confidence for one in run.samples])
    correct = np.array([one.truth == one.guess for one in run.samples])
    yield "curves", lambda: figures.curves(run.log)
    yield "confusion_matrix", lambda: figures.confusion_matrix(run.metrics)
    yield "classes", lambda: figures.class_bars(run.metrics)
    yield "reliability", lambda: figures.reliability(confidence, correct)
    yield "mistakes", lambda: mistakes(run.samples, run.options.get("image_reading") or RGB_ON_WHITE)
    yield "feature_map", lambda: feature_map(run, device)


def mistakes(samples: Sequence[Sample], image_reading: str) -> Figure:
    """The most confident mistakes, the worst first."""
    wrong = sorted((one for one in samples if one.truth != one.guess), key=lambda one: -one.confidence)[:MISTAKES]
    titles = [f"{label(one.truth)}\nas {label(one.guess)} {100 * one.confidence:.0f} %" for one in wrong]
    return figures.mistake_sheet([read_image(one.path, reading=image_reading) for one in wrong], titles)


def feature_map(run: RunFolder, device: str) -> Figure:
    """t-SNE (scikit-learn) of the fused features of the test images without texts, marked by their true class."""
    predictor = load_predictor(run.checkpoint, device=device, bert_model=run.options["bert_model"])
    features = fused_features(predictor, [one.path for one in run.samples])
    points, method = place_points(features)
    labels = [predictor.class_names.index(one.truth) for one in run.samples]
    title = f"{run.metrics['split']}: fused features, {method}" + (", without texts" if predictor.tokenizer else "")
    return figures.feature_map(points, labels, predictor.class_names, title)


def place_points(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Points (n, 2) for features (n, d), and the method: t-SNE, or for too few or equal features their main axes."""
    differ = np.ptp(features, axis=0).max() > ROUNDING * np.abs(features).max()
    if len(features) >= FEWEST and differ:
        neighbours = min(30, (len(features) - 1) / 3)
        return TSNE(perplexity=neighbours, init="pca", random_state=0).fit_transform(features), "t-SNE"
    left, lengths, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    points = (left * lengths)[:, :2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), "main axes"


@torch.inference_mode()
def fused_features(predictor: Predictor, paths: Sequence[Path]) -> np.ndarray:
    """The input of the network's head for each image, (n, hidden_dim); raises UserError if there is no fusion."""
    if not hasattr(predictor.model, "fusion_model"):
        expected = names_where(lambda network: network.selects_patches)  # which have a fusion
        raise UserError(f"checkpoint: expected {expected}, found {predictor.name}, which fuses no features")
    features = []
    for first in range(0, len(paths), BATCH):
        results: dict[str, Any] = {}
        with keep_result(predictor.model.fusion_model, "fused", results):
            predictor.logits(*predictor.inputs(paths[first : first + BATCH]))
        features.append(results["fused"].float().cpu())
    return torch.cat(features).numpy()


def compare(metrics: dict[str, Any], baselines_file: Path) -> str:
    """A table of the network's and the baselines' test metrics, and a line for each baseline that is as good."""
    ours = (metrics["acc1"] / 100, metrics["macro"]["f1"])
    rows = {}
    if baselines_file.is_file():
        baselines = json.loads(baselines_file.read_text(encoding="utf-8"))
        for key, name in BASELINES.items():
            rows[name] = (baselines[key]["accuracy"], baselines[key]["macro_f1"])
    lines = [f"{'test':<28}{'accuracy %':>12}{'macro F1 %':>12}"]
    lines += [f"{name:<28}{100 * a:>12.2f}{100 * f1:>12.2f}" for name, (a, f1) in [*rows.items(), ("network", ours)]]
    better = [name for name, (accuracy, _) in rows.items() if accuracy >= ours[0]]
    lines += [f"The network is NOT better than {name}." for name in better]
    return "\n".join(lines)


def draw_run(folder: Path, output: Path, formats: Sequence[str], device: str) -> None:
    """Draws a run folder's figures; says which ones it cannot draw because images or the network are missing."""
    run = read_run(folder)
    for name, draw in run_figures(run, device):
        try:
            save(draw(), output, name, formats)
        except UserError as error:
            print(f"visualize.py: no {name}: {error}", file=sys.stderr)
    print(compare(run.metrics, folder / "baselines_test.json"))


def draw_images(options: argparse.Namespace, output: Path) -> None:
    """Draws what the network looked at in each image; raises UserError."""
    predictor = load_predictor(options.source, device=options.device, bert_model=options.bert_model)
    for number, path in enumerate(options.images):
        prefix = f"{number:04}_" if len(options.images) > 1 else ""  # keeps equal names apart
        save(explanation_figure(explain(predictor, path, options.text)), output, prefix + path.stem, options.format)


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> None:
    """Writes a figure in each format and prints the paths."""
    print(", ".join(str(path) for path in figures.save_figure(figure, [folder / f"{name}.{one}" for one in formats])))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a checkpoint, followed by images, or a run folder")
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
    parser.add_argument("--text", default="", help="text of the images, for LORA")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the run folder; for images, pictures")
    parser.add_argument("--format", nargs="+", choices=["png", "pdf"], default=["png"])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder or archive of the text encoder")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws what the arguments ask for; raises UserError."""
    options = build_parser().parse_args(arguments)
    is_run = options.source.is_dir()
    if is_run == bool(options.images):
        expected = "no images after a run folder" if is_run else "images after a checkpoint, or a run folder"
        raise UserError(f"{options.source}: expected {expected}")
    output = options.output or (options.source if is_run else Path("pictures"))
    make_writable_folder(output, "--output")
    if is_run:
        draw_run(options.source, output, options.format, options.device)
    else:
        draw_images(options, output)


if __name__ == "__main__":
    start(main)
