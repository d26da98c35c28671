"""Model cards: a page of Markdown on what a model is, its training data, its test metrics and how to load it.

    python -m runtime.model_card runs/demo/checkpoint_best.pth      # writes runs/demo/checkpoint_best.md

Training writes the card of the checkpoint that it evaluates at the end; tools/export.py writes the card of an export.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import torch

from inference.predictor import Predictor, load_predictor
from readers.data_sets import DATA_SETS
from readers.images import PUBLISHED
from runtime.options import METRICS
from utils import UserError, printable, write_whole

MARK = "<!-- model card, written by tools: it is replaced by the next card -->"
PROTOCOLS = {
    "published": "evaluated on test after each epoch, as published; the best epoch's metrics are optimistic",
    "val": "epoch selected on val, evaluated on test once",
}

LOADING = {
    "pth": "    from inference.predictor import load_predictor\n    predictor = load_predictor({name!r})\n"
    "    print(predictor(['sticker.png']{texts}))",
    "onnx": "    python docs/examples/run_onnx.py {name} sticker.png\n\n"
    "Needs onnxruntime, numpy and Pillow, not PyTorch.",
    "pt2": "    extra = {{'class_names': '', 'transform': ''}}  # and the other metadata: see docs/export.md\n"
    "    program = torch.export.load({name!r}, extra_files=extra).module()\n    logits = program({inputs})",
    "safetensors": "    with safe_open({name!r}, 'pt') as file:\n"
    "        model = create_model(**json.loads(file.metadata()['architecture'])).eval()\n"
    "    model.load_state_dict(load_file({name!r}))\n    logits = model({inputs})",
}


def card(predictor: Predictor, checkpoint: str | Path, file: str, format: str = "pth", checked: str = "") -> str:
    """The card of a model.

    Args:
        checkpoint: the file of the model; its test metrics are read from `<its stem>_test.json` beside it.
        file: the name of the file that the card describes.
        format: that file's format, pth for a checkpoint.
        checked: how an exported file was compared with PyTorch, and the result.
    """
    settings, name = predictor.settings, predictor.network.title
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters())
    details = f"{parameters / 1e6:.1f} million parameters, {predictor.input_size} px images"
    if predictor.network.is_pyramid:
        details = f"backbone {settings['backbone']}, {details}"
    if predictor.network.selects_patches:
        details += f", alpha {settings['alpha']}, locals {' '.join(map(str, settings['locals']))}"
    protocol = settings.get("protocol")
    protocol = f"{printable(protocol)}: {PROTOCOLS.get(protocol, 'unknown')}" if protocol else "not recorded"
    if metric := METRICS.get(settings.get("best_metric") or ""):
        protocol += f"; best epoch by {metric}"
    dataset = DATA_SETS.get(settings["dataset"])
    classes = ", ".join(as_markdown(one) for one in predictor.class_names)
    lines = [
        MARK,
        f"# {name}: {as_markdown(file)}\n",
        f"Emotion recognition in stickers. Made from `{printable(Path(checkpoint).name)}`.\n",
        f"- Network: {name}, {details}",
        f"- Data set: `--dataset {printable(settings['dataset'])}`" + (f" ({dataset.layout})" if dataset else ""),
        f"- Classes, in the order of the logits: {classes}",
        f"- Protocol: {protocol}",
        *(["- Images: read as the published code does"] if predictor.image_reading == PUBLISHED else []),
        *figures(Path(checkpoint)),
        *([f"- Export: torch {torch.__version__}; {checked}"] if checked else []),
        f"\n## Loading\n\n{loading(predictor, file, format)}",
        f"\n## Limits\n\n{limits(predictor)}",
        "\n## Licence\n\nCode: Apache-2.0. The training data, also that of pretrained parts, has its own licences, "
        "which may restrict the use of the weights.\n",
    ]
    return "\n".join(lines)


def as_markdown(name: str) -> str:
    """A name that Markdown shows as it is, without formatting or formulas."""
    return re.sub(r"[\\`*<>$\[\]~]", r"\\\g<0>", printable(name))


def figures(checkpoint: Path) -> list[str]:
    """The card's lines on the test metrics; "not evaluated" if there are none."""
    path = checkpoint.with_name(f"{checkpoint.stem}_test.json")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        acc1, macro_f1, loss = metrics["acc1"], 100 * metrics["macro"]["f1"], metrics["loss"]
        if not all(map(math.isfinite, (acc1, macro_f1, loss))) or metrics["checkpoint"] != checkpoint.name:
            raise ValueError(path)
        context = metrics.get("context")
        lines = [f"- Context of the test figures: {printable(str(context['statement']))}"] if context else []
        return [
            f"- Test: top-1 {acc1:.2f} %, macro F1 {macro_f1:.2f} %, loss {loss:.4f} on "
            f"{int(metrics['samples'])} images, read from `{printable(path.name)}`",
            *lines,
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no file, or not an evaluation's
        return ["- Test: not evaluated"]


def loading(predictor: Predictor, file: str, format: str) -> str:
    """The code that loads a file."""
    texts, inputs = (", ['a text']", "images, word_ids, word_mask") if predictor.tokenizer else ("", "images")
    return LOADING[format].format(name=file, texts=texts, inputs=inputs)


def limits(predictor: Predictor) -> str:
    """What the model cannot do."""
    sentences = [
        "Trained on pictures like those of its data set. Photographs, other styles and stickers of other cultures were "
        "not tested. Probabilities are not calibrated: they do not say how certain a prediction is. The label says "
        "what annotators saw in a sticker, not what its sender feels."
    ]
    if predictor.selects_patches:
        sentences.append(
            "Rounding decides which patches are selected if their scores are nearly equal, so logits differ slightly "
            "between machines."
        )
    if predictor.tokenizer is not None:
        sentences.append("Texts are lowercased and cut to 30 word pieces.")
    return " ".join(sentences)


def write_card(path: Path, text: str) -> None:
    """Writes a card; raises UserError if it cannot be written, or would replace a file that is no card."""
    check_replaceable(path)
    write_whole(path, text.encode(errors="backslashreplace"))


def write_card_beside(predictor: Predictor, checkpoint: Path) -> Path:
    """Writes the card of a checkpoint to `<its stem>.md` beside it and returns that path; raises UserError."""
    path = checkpoint.with_suffix(".md")
    write_card(path, card(predictor, checkpoint, checkpoint.name))
    return path


def check_replaceable(path: Path) -> None:
    """Raises UserError if the path exists and is no card."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            is_card = file.readline().strip() == MARK
    except OSError:
        is_card = False
    if not is_card:
        raise UserError(f"{printable(path)}: would be replaced by the model card, but is none: rename it or the output")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of any network of this project")
    try:
        checkpoint = parser.parse_args().checkpoint
        print(write_card_beside(load_predictor(checkpoint, device="cpu"), checkpoint))
    except UserError as error:
        print(f"model_card.py: error: {error}", file=sys.stderr)
        sys.exit(2)
