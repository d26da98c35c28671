"""A page of Markdown that goes with a model: what it is, what it was trained on, how good it is, how to load it.

    python -m runtime.model_card runs/demo/checkpoint_best.pth      # writes checkpoint_best.md beside it

Training writes the card of the checkpoint that it evaluates at its end; an export has its card from tools/export.py.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from inference.predictor import Predictor, load_predictor
from readers.data_sets import DATA_SETS
from utils import UserError, printable, write_whole

MARK = "<!-- model card, written by tools: it is replaced by the next card -->"

PROTOCOLS = {
    "published": "after each epoch evaluated on test, as published; figures chosen so are optimistic",
    "val": "epoch chosen on val, evaluated on test once",
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
        checkpoint: where the model comes from; the figures are those of `<its stem>_test.json` beside it.
        file: the name of the file that the card goes with; `format`: pth for a checkpoint, or what it was exported to.
        checked: how an exported file was compared with PyTorch, and what came out.
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
    dataset = DATA_SETS.get(settings["dataset"])
    classes = ", ".join(printable(one) for one in predictor.class_names)
    lines = [
        MARK,
        f"# {name}: {printable(file)}\n",
        f"Emotion recognition in stickers. Made of `{printable(Path(checkpoint).name)}`.\n",
        f"- Network: {name}, {details}",
        f"- Data set: `--dataset {printable(settings['dataset'])}`" + (f" ({dataset.layout})" if dataset else ""),
        f"- Classes, in the order of the logits: {classes}",
        f"- Protocol: {protocol}",
        *figures(Path(checkpoint)),
        *([f"- Export: torch {torch.__version__}; {checked}"] if checked else []),
        f"\n## Loading\n\n{loading(predictor, file, format)}",
        f"\n## Limits\n\n{limits(predictor)}",
        "\n## Licence\n\nCode: Apache-2.0. The data that the weights were learned from, pretrained parts included, has "
        "licences of its own, which may restrict what the weights are used for.\n",
    ]
    return "\n".join(lines)


def figures(checkpoint: Path) -> list[str]:
    """The card's lines on the test figures; "not evaluated" where no file has them."""
    path = checkpoint.with_name(f"{checkpoint.stem}_test.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = {"acc1": found["acc1"], "macro F1": 100 * found["macro"]["f1"], "loss": found["loss"]}
        if not all(math.isfinite(value) for value in values.values()) or found["checkpoint"] != checkpoint.name:
            raise ValueError(path)
        return [
            f"- Test: top-1 {values['acc1']:.2f} %, macro F1 {values['macro F1']:.2f} %, loss {values['loss']:.4f} on "
            f"{int(found['samples'])} images, read from `{printable(path.name)}`"
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or none that an evaluation wrote
        return ["- Test: not evaluated"]


def loading(predictor: Predictor, file: str, format: str) -> str:
    """How a file is loaded, as a block of code."""
    reads_texts = predictor.tokenizer is not None
    values: dict[str, Any] = {"name": file, "texts": ", ['a text']" if reads_texts else ""}
    values["inputs"] = "images, word_ids, word_mask" if reads_texts else "images"
    return LOADING[format].format(**values)


def limits(predictor: Predictor) -> str:
    """What the model cannot do."""
    found = (
        "Trained on pictures like those of its data set; what it says of photographs, other styles or other cultures' "
        "stickers was not measured. A class's probability is not how sure to be: it was not calibrated. The label says "
        "what annotators saw in a sticker, not what its sender feels."
    )
    if predictor.selects_patches:
        found += (
            " Where scores are nearly equal, rounding decides which patches are selected, so that logits differ a "
            "little between machines."
        )
    if predictor.tokenizer is not None:
        found += " Texts are read in lower case and to 30 word pieces."
    return found


def write_card(predictor: Predictor, checkpoint: Path) -> Path:
    """Writes the card of a checkpoint beside it, `<stem>.md`, and returns its path.

    Raises:
        UserError: it cannot be written, or would replace a file that is no card.
    """
    path = checkpoint.with_suffix(".md")
    check_replaceable(path)
    write_whole(path, card(predictor, checkpoint, checkpoint.name).encode())
    return path


def check_replaceable(path: Path) -> None:
    """Raises UserError if something that is no card is at the place of a card."""
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
    parser.add_argument("checkpoint", type=Path, help="of any network")
    try:
        checkpoint = parser.parse_args().checkpoint
        print(write_card(load_predictor(checkpoint, device="cpu"), checkpoint))
    except UserError as error:
        print(f"model_card.py: error: {error}", file=sys.stderr)
        sys.exit(2)
