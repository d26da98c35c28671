"""Predicts the emotion of stickers with a checkpoint, which is all that it needs:

    python tools/predict.py weights/lora_v_demo.pth sticker.png more/*.png
    python tools/predict.py runs/demo/checkpoint_best.pth folder --text "so happy" --format csv --output found.csv
    python tools/predict.py CHECKPOINT list.csv --top-k 3 --overlay pictures

An input is an image, a folder (all files below it), a pattern in quotes, or a CSV file with the columns `image` (paths
from the file's folder on) and, if there are texts, `text`. Files that cannot be read are told on standard error and do
not stop it; the exit code is then 1.
"""

import argparse
import csv
import glob
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/predict.py` finds the project's modules

from inference.predictor import Prediction, Predictor, load_predictor
from utils import UserError, make_writable_folder, printable, write_whole

COLUMN = "image"


class Item(NamedTuple):
    """An image and its text."""

    path: Path
    text: str


def find_items(inputs: Sequence[str], text: str) -> list[Item]:
    """The images that the inputs name, in their order; `text` goes with those that have none of their own.

    Raises:
        UserError: an input that is not there or names nothing, a CSV file without the columns.
    """
    items: list[Item] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
        elif path.suffix.lower() == ".csv" and path.is_file():
            items += read_list(path, text)
            continue
        elif path.exists() or not glob.has_magic(name):
            found = [path]
        else:
            found = sorted(Path(one) for one in glob.glob(name, recursive=True) if Path(one).is_file())
        if not found:
            raise UserError(f"{printable(name)}: expected images, found none: check the path")
        items += [Item(one, text) for one in found]
    return items


def read_list(path: Path, text: str) -> list[Item]:
    """The images of a CSV file; raises UserError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if COLUMN not in (reader.fieldnames or []):
                raise UserError(
                    f"{printable(path)}: expected a column {COLUMN!r}, found {reader.fieldnames}: name it so"
                )
            return [Item(path.parent / row[COLUMN], row.get("text") or text) for row in reader if row[COLUMN]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{printable(path)}: expected a CSV file in UTF-8, found {error}") from error


def predict(predictor: Predictor, items: Sequence[Item], batch_size: int) -> Iterator[tuple[Item, Prediction | str]]:
    """Each item with its prediction, or why it cannot be read; the items of a batch go through the network together."""
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        images = [read(predictor, item.path) for item in batch]
        readable = [(image, item.text) for image, item in zip(images, batch, strict=True) if isinstance(image, Tensor)]
        predictions = iter(predictor(*zip(*readable, strict=True)) if readable else ())
        for image, item in zip(images, batch, strict=True):
            yield item, next(predictions) if isinstance(image, Tensor) else image


def read(predictor: Predictor, path: Path) -> Tensor | str:
    """An image as the network sees it, or why it cannot be read."""
    try:
        return predictor.tensor(path)
    except UserError as error:
        return str(error)


def as_table(found: Sequence[tuple[Item, Prediction]], top_k: int) -> str:
    """A line for each image: its most probable classes with their probabilities in percent."""
    width = max((len(printable(item.path)) for item, _ in found), default=0)
    return "".join(
        f"{printable(item.path):<{width}}"
        + "".join(f"  {name} {100 * p:5.1f} %" for name, p in list(prediction.probabilities.items())[:top_k])
        + "\n"
        for item, prediction in found
    )


def as_csv(found: Sequence[tuple[Item, Prediction]], names: Sequence[str]) -> str:
    """A line of CSV for each image: image, text, prediction, and a probability for each class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([COLUMN, "text", "prediction", *(f"p_{name}" for name in names)])
    for item, prediction in found:
        row = [f"{prediction.probabilities[name]:.9g}" for name in names]
        table.writerow([item.path, item.text, prediction.label, *row])
    return text.getvalue()


def as_json(found: Sequence[tuple[Item, Prediction]], top_k: int) -> str:
    """A list of objects, the probabilities of the first classes in each."""
    entries = [
        {
            COLUMN: str(item.path),
            "text": item.text,
            "prediction": prediction.label,
            "probabilities": dict(list(prediction.probabilities.items())[:top_k]),
        }
        for item, prediction in found
    ]
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of LORA, LORA-V or pvt")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="image, folder, pattern or CSV file")
    parser.add_argument("--text", default="", help="text of the images that have none of their own, for LORA")
    parser.add_argument("--top-k", type=int, metavar="K", help="classes to show (table: 3, otherwise all)")
    parser.add_argument("--format", choices=["table", "json", "csv"], default="table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of standard output")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="draw what was looked at, a PNG for each image")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder of a text encoder's own vocabulary")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Predicts; 1 where a file could not be read.

    Raises:
        UserError: no checkpoint, no images, an output that cannot be written.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    for name in ("batch_size", "top_k"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected a positive number")
    items = find_items(options.inputs, options.text)
    predictor = load_predictor(options.checkpoint, device=options.device, bert_model=options.bert_model)
    warn_of_texts(predictor, items)
    found, unreadable = [], 0
    results = predict(predictor, items, options.batch_size)
    for item, result in tqdm(results, total=len(items), unit="image", disable=None, leave=False):
        if isinstance(result, str):
            unreadable += 1
            print(f"predict.py: not read: {result}", file=sys.stderr)
        else:
            found.append((item, result))
    formats = {
        "table": lambda: as_table(found, options.top_k or 3),
        "csv": lambda: as_csv(found, predictor.class_names),
        "json": lambda: as_json(found, options.top_k or len(predictor.class_names)),
    }
    text = formats[options.format]()
    if options.output:
        write_whole(options.output, text.encode())
    else:
        print(text, end="")
    if options.overlay:
        draw_overlays(predictor, [item for item, _ in found], options.overlay)
    return int(unreadable > 0)


def warn_of_texts(predictor: Predictor, items: Sequence[Item]) -> None:
    """Says where a text is not read, or not to its end."""
    texts = {item.text for item in items if item.text}
    if texts and predictor.tokenizer is None:
        print(f"predict.py: {predictor.name} reads no texts: those given are not used", file=sys.stderr)
    elif predictor.tokenizer is not None:
        for text in sorted(text for text in texts if predictor.tokenizer.is_too_long(text)):
            print(f"predict.py: longer than 30 word pieces and cut: {printable(text, 60)}", file=sys.stderr)


def draw_overlays(predictor: Predictor, items: Sequence[Item], folder: Path) -> None:
    """Draws each item into the folder, numbered so that equal names do not meet."""
    from inference.overlay import draw_explanation  # matplotlib takes a second to import

    make_writable_folder(folder)
    for number, item in enumerate(tqdm(items, desc="overlay", disable=None, leave=False)):
        draw_explanation(predictor, item.path, item.text, folder / f"{number:04}_{item.path.stem}.png")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"predict.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
