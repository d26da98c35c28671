"""Predicts the emotion of stickers with a checkpoint:

    python tools/predict.py weights/lora_v_demo.pth sticker.png more/*.png
    python tools/predict.py runs/demo/checkpoint_best.pth folder --text "so happy" --format csv --output predictions.csv
    python tools/predict.py CHECKPOINT list.csv --top-k 3 --overlay pictures

An input is an image, a folder (all files below it, links followed; hidden files and those of systems are left out), a
quoted pattern, or a table (.csv, .tsv) with the column `image` (paths relative to the file's folder) and optionally
`text`. Files that cannot be read are reported on standard error and skipped; the exit code is then 1.
"""

import argparse
import csv
import glob
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/predict.py` finds the project's modules

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


from tqdm import tqdm

from datasets import StickerDataset
from inference.explain import explain
from inference.predictor import Prediction, Predictor, load_predictor
from readers.annotations import Sample
from readers.class_folders import files_below
from readers.files import stop
from readers.placing import Folders, nearest
from readers.tables import read_table
from runtime.launch import set_threads, usable_cores
from runtime.loader import build_loader, read_batches, worker_death
from runtime.option_types import natural, positive_int
from tools.start import start
from utils import RunError, UserError, escaped, listed, make_writable_folder, printable, reason, write_whole

COLUMN = "image"


class Item(NamedTuple):
    """An image and its text."""

    path: Path
    text: str


def find_items(inputs: Sequence[str], text: str) -> list[Item]:
    """The images that the inputs name, in order; `text` is the text of those without their own.

    Raises:
        UserError: an input does not exist or names no image, or a CSV file lacks the column.
    """
    items: list[Item] = []
    for name in inputs:
        path = Path(name)
        if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
            items += read_list(path, text)
            continue
        if path.is_dir():
            paths = files_of(path)
        elif path.exists() or not glob.has_magic(name):
            paths = [path]
        else:
            paths = sorted(Path(one) for one in glob.glob(name, recursive=True) if Path(one).is_file())
        if not paths:
            raise UserError(f"{printable(name)}: expected images, found none: check the path")
        items += [Item(one, text) for one in paths]
    return items


def read_list(path: Path, text: str) -> list[Item]:
    """The images of a table, in another form of their names if only such files are there; raises UserError."""
    folders, items = Folders(), []
    for _, row in read_table(path, (COLUMN,), stop, more=("text",)):
        if row[COLUMN].strip():
            items.append(Item(nearest(folders, path.parent, row[COLUMN]), row.get("text") or text))
    return items


def files_of(folder: Path) -> list[Path]:
    """The files below a folder in order; says what is left out. Raises UserError."""
    of_systems: list[str] = []
    paths = sorted(folder.joinpath(*parts) for parts in files_below(folder, of_systems))
    if of_systems:
        print(f"predict.py: left out what is hidden or of a system: {listed(of_systems)}", file=sys.stderr)
    return paths


def predict(
    predictor: Predictor, items: Sequence[Item], batch_size: int, num_workers: int = 0
) -> Iterator[tuple[Item, Prediction | str]]:
    """Each item with its prediction, or with the reason why it cannot be read; the network runs once per batch.

    Each worker reads one batch ahead; a single batch needs none.

    Raises:
        RunError: a worker has died, or the machine lacks something.
    """
    dataset = StickerDataset(
        [Sample(item.path, 0, item.text) for item in items],
        predictor.transform,
        predictor.tokenizer,
        on_bad_image="skip",
        image_reading=predictor.image_reading,
    )
    workers = min(num_workers, math.ceil(len(items) / batch_size) - 1)
    loader = build_loader(dataset, batch_size=batch_size, num_workers=workers, prefetch_factor=1)
    for batch in read_batches(loader):
        results: dict[int, Prediction | str] = {bad.index: f"{bad.path}: {bad.reason}" for bad in batch["skipped"]}
        if "image" in batch:
            inputs = [batch[name].to(predictor.device) for name in ("image", "word_ids", "word_mask") if name in batch]
            results |= dict(zip(batch["index"].tolist(), predictor.predictions(*inputs), strict=True))
        for index, result in sorted(results.items()):
            if dataset.blank[index]:
                path = printable(items[index].path)
                print(f"predict.py: one colour (on white), nothing is seen in it: {path}", file=sys.stderr)
            yield items[index], result


def as_table(results: Sequence[tuple[Item, Prediction]], top_k: int) -> str:
    """A line for each image: its most probable classes with their probabilities in percent."""
    width = max((len(printable(item.path)) for item, _ in results), default=0)
    return "".join(
        f"{printable(item.path):<{width}}"
        + "".join(f"  {name} {100 * p:5.1f} %" for name, p in list(prediction.probabilities.items())[:top_k])
        + "\n"
        for item, prediction in results
    )


def as_csv(results: Sequence[tuple[Item, Prediction]], names: Sequence[str]) -> str:
    """A line of CSV for each image: image, text, prediction, and a probability for each class; see `utils.escaped`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([COLUMN, "text", "prediction", *(f"p_{name}" for name in names)])
    for item, prediction in results:
        row = [f"{prediction.probabilities[name]:.9g}" for name in names]
        table.writerow([item.path, item.text, prediction.label, *row])
    return escaped(text.getvalue())


def as_json(results: Sequence[tuple[Item, Prediction]], top_k: int, encoding: str = "utf-8") -> str:
    """A JSON list with an object for each image: path, text, prediction, and the most probable classes.

    What `encoding` lacks, as a file name that is no text, makes the list ASCII, with JSON's escapes.
    """
    entries = [
        {
            COLUMN: str(item.path),
            "text": item.text,
            "prediction": prediction.label,
            "probabilities": dict(list(prediction.probabilities.items())[:top_k]),
        }
        for item, prediction in results
    ]
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(entries, indent=1) + "\n"
    return text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of any network of this project")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="image, folder, pattern or CSV file")
    parser.add_argument("--text", default="", help="text of the images without their own, for LORA")
    parser.add_argument("--top-k", type=positive_int, metavar="K", help="classes to show (table: 3, otherwise all)")
    parser.add_argument("--format", choices=["table", "json", "csv"], default="table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file, not to standard output")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="draw what was looked at, a PNG for each image")
    parser.add_argument("--batch-size", type=positive_int, default=16)
    parser.add_argument("--num-workers", type=natural, default=4, help="processes that read images; 0: none besides")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder or archive of the text encoder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Predicts and returns the exit code: 1 if a file could not be read, otherwise 0.

    Raises:
        UserError: there is no checkpoint or no image, or an output cannot be written.
    """
    options = build_parser().parse_args(arguments)
    items = find_items(options.inputs, options.text)
    set_threads()
    predictor = load_predictor(options.checkpoint, device=options.device, bert_model=options.bert_model)
    warn_of_texts(predictor, items)
    results: list[tuple[Item, Prediction]] = []
    answers = predict(predictor, items, options.batch_size, min(options.num_workers, usable_cores()))
    try:
        for item, result in tqdm(answers, total=len(items), unit="image", disable=None, leave=False):
            if isinstance(result, str):
                print(f"predict.py: not read: {result}", file=sys.stderr)
            else:
                results.append((item, result))
    except RuntimeError as error:
        if (line := worker_death(error)) is None:
            raise
        raise RunError(line) from error
    if options.format == "table":
        text = as_table(results, options.top_k or 3)
    elif options.format == "csv":
        text = as_csv(results, predictor.class_names)
    else:
        encoding = "utf-8" if options.output else sys.stdout.encoding or "utf-8"
        text = as_json(results, options.top_k or len(predictor.class_names), encoding)
    if options.output:
        write_output(options.output, text.encode(errors="backslashreplace"))
    else:
        print(text, end="")
    if options.overlay:
        draw_overlays(predictor, [item for item, _ in results], options.overlay)
    return int(len(results) < len(items))


def write_output(path: Path, content: bytes) -> None:
    """Writes the predictions whole or not at all; raises UserError."""
    try:
        write_whole(path, content)
    except UserError as error:  # its advice is for a training
        cause = error.__cause__ or error
        raise UserError(f"--output {printable(path)}: cannot be written: {reason(cause)}; name another file") from error


def warn_of_texts(predictor: Predictor, items: Sequence[Item]) -> None:
    """Warns if the network reads no texts, or cuts one."""
    texts = {item.text for item in items if item.text}
    if texts and predictor.tokenizer is None:
        print(f"predict.py: {predictor.name} reads no texts: they are ignored", file=sys.stderr)
    elif predictor.tokenizer is not None:
        for text in sorted(text for text in texts if predictor.tokenizer.is_too_long(text)):
            print(f"predict.py: longer than 30 word pieces and cut: {printable(text, 60)}", file=sys.stderr)


def draw_overlays(predictor: Predictor, items: Sequence[Item], folder: Path) -> None:
    """Draws what the network looked at in each item; numbers keep the files of equal names apart."""
    from inference.overlay import explanation_figure  # matplotlib takes a second to import
    from runtime.figures import save_figure

    make_writable_folder(folder, "--overlay")
    for number, item in enumerate(tqdm(items, desc="overlay", disable=None, leave=False)):
        figure = explanation_figure(explain(predictor, item.path, item.text))
        save_figure(figure, [folder / f"{number:04}_{item.path.stem}.png"])


if __name__ == "__main__":
    start(main)
