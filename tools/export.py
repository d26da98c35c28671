"""Exports a trained model: an ONNX file, a PyTorch program (pt2), or weights as safetensors.

    python tools/export.py runs/demo/checkpoint_best.pth lora.onnx
    python tools/export.py runs/demo/checkpoint_best.pth lora.onnx --check data/demo/Images
    python tools/export.py CHECKPOINT OUTPUT --format safetensors

OUTPUT's suffix names the format. ONNX and pt2 files take any number of images of the size that the network was trained
with. They are compared with PyTorch on the pictures of --check, or on four drawn ones, and are not written if they
compute something else (tools/exporting/comparing.py). A model card, OUTPUT's name with .md, is written beside the
file. See docs/export.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


from inference.predictor import Predictor, load_predictor
from models import names_where
from runtime import model_card
from tools.exporting import comparing, files
from tools.start import start
from utils import UserError, printable, write_whole


def find_format(output: Path, asked: str | None) -> str:
    """The format that the output's suffix or --format names; raises UserError if neither does, or they differ."""
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in files.FORMATS and not asked:
        endings = ", ".join(f".{one}" for one in files.FORMATS)
        raise UserError(f"{printable(output)}: expected a name that ends in {endings}; rename it or give --format")
    if suffix in files.FORMATS and asked not in (None, suffix):
        raise UserError(f"{printable(output)}: does not fit --format {asked}; let its name end in .{asked}")
    return asked or suffix


def check_output(output: Path, checkpoint: Path) -> None:
    """Raises UserError, before the long export, if the file or its card cannot be written or would replace another."""
    try:
        if output.is_dir() or output.suffix == ".md":
            raise UserError(f"{printable(output)}: expected the name of a file, found a folder or .md; rename it")
        if not output.parent.is_dir():
            raise UserError(f"{printable(output)}: expected a folder that exists, found none; make it")
        if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
            raise UserError(f"{printable(output)}: expected a new file, found the checkpoint itself; rename it")
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise UserError(f"{printable(output)}: cannot be written: {error.strerror}") from error
    model_card.check_replaceable(output.with_suffix(".md"))


def export(predictor: Predictor, format: str, check: Path | None = None) -> tuple[bytes, str]:
    """A model as a file's content, and how it compares with PyTorch.

    Raises:
        UserError: it computes something else, a package is missing, or `check` has no pictures.
    """
    metadata = files.describe(predictor)
    if format == "safetensors":
        if check is not None:
            raise UserError(
                "--check: expected --format onnx or pt2, found safetensors, which only hold weights; omit it"
            )
        return files.safetensors_bytes(predictor, metadata), "the weights are the checkpoint's, bit by bit"
    batches = comparing.check_batches(predictor, check)
    program = files.trace(predictor)
    if format == "onnx":
        content = files.onnx_bytes(program, metadata)
        runner = comparing.onnx_runner(content)
    else:
        content = files.pt2_bytes(program, metadata)
        runner = comparing.pt2_runner(content)
    comparison = comparing.compare(predictor, runner, batches)
    if not comparison.is_good:
        raise UserError(f"nothing was written, the exported program computes something else: {comparison}")
    return content, str(comparison)


def write_export(output: Path, content: bytes) -> None:
    """Writes the file whole or not at all; raises UserError."""
    try:
        write_whole(output, content)
    except UserError as error:  # its advice is for a training
        raise UserError(f"{printable(output)}: cannot be written: {error.__cause__.strerror}") from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of LORA, LORA-V or pvt")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--format", choices=files.FORMATS, help="if the output's suffix does not name it")
    parser.add_argument("--check", type=Path, metavar="DIR", help="folder of pictures to compare on (onnx, pt2)")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder of a text encoder's own vocabulary")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports and prints what was written and how it compares.

    Raises:
        UserError: no checkpoint, a format that does not fit, an output that cannot be written, or see `export`.
    """
    options = build_parser().parse_args(arguments)
    format = find_format(options.output, options.format)
    check_output(options.output, Path(options.checkpoint))
    if format == "onnx":
        files.check_installed()
    predictor = load_predictor(options.checkpoint, device="cpu", bert_model=options.bert_model)
    if not predictor.network.is_pyramid:
        expected = names_where(lambda network: network.is_pyramid)
        raise UserError(f"{printable(options.checkpoint)}: expected {expected}, found {predictor.name}")
    content, account = export(predictor, format, options.check)
    card = model_card.card(predictor, options.checkpoint, options.output.name, format, account)
    write_export(options.output, content)
    model_card.write_card(options.output.with_suffix(".md"), card)
    card_name = printable(options.output.with_suffix(".md"))
    print(f"{printable(options.output)}: {len(content) / 1e6:.1f} MB; {account}; model card: {card_name}")


if __name__ == "__main__":
    start(main)
