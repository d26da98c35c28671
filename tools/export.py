"""Takes a trained model away into another program: an ONNX file, weights as safetensors, or a PyTorch program.

    python tools/export.py runs/demo/checkpoint_best.pth lora.onnx
    python tools/export.py runs/demo/checkpoint_best.pth lora.onnx --check data/demo/Images
    python tools/export.py CHECKPOINT OUTPUT --format safetensors

The format is that of OUTPUT's suffix. ONNX and pt2 files take any number of images of the size that the network was
trained with, and are compared with PyTorch before they are written, on the pictures of --check or on four drawn ones
(`tools/export_check.py` says how, and why nearly equal scores are told apart from mistakes); one that computes
something else is not written. A model card, OUTPUT's name with .md, is written beside it. See docs/export.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/export.py` finds the project's modules

from inference.predictor import Predictor, load_predictor
from models import get_network
from runtime import model_card
from tools import export_check, export_files
from utils import UserError, printable, write_whole


def find_format(output: Path, asked: str | None) -> str:
    """The format that the output's suffix or --format names; raises UserError where none does, or they differ."""
    suffix = output.suffix.lower().removeprefix(".")
    suffix = suffix if suffix in export_files.FORMATS else None
    if suffix and asked and suffix != asked:
        raise UserError(f"{printable(output)}: does not fit --format {asked}: let its name end in .{asked}")
    if not suffix and not asked:
        endings = ", ".join(f".{one}" for one in export_files.FORMATS)
        raise UserError(f"{printable(output)}: expected a name that ends in {endings}: name it so, or give --format")
    return asked or suffix


def check_output(output: Path, checkpoint: Path) -> None:
    """Raises UserError where output or card could not be written, or would replace something: an export takes long."""
    try:
        if output.is_dir() or output.suffix == ".md":
            raise UserError(f"{printable(output)}: expected the name of a file, not .md, found another: rename it")
        if not output.parent.is_dir():
            raise UserError(f"{printable(output)}: its folder is not there: make it")
        if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
            raise UserError(f"{printable(output)}: is the checkpoint itself: choose another name")
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise UserError(f"{printable(output)}: cannot be written: {error.strerror}") from error
    model_card.check_replaceable(output.with_suffix(".md"))


def export(predictor: Predictor, format: str, check: Path | None = None) -> tuple[bytes, str]:
    """A model as a file's content, and how it compares with PyTorch.

    Raises:
        UserError: it computes something else, a package is missing, or `check` has no pictures.
    """
    metadata = export_files.describe(predictor)
    if format == "safetensors":
        if check is not None:
            raise UserError("--check is for onnx and pt2: safetensors hold weights alone, which nothing runs")
        return export_files.safetensors_bytes(predictor, metadata), "the weights are the checkpoint's, bit by bit"
    batches = export_check.check_batches(predictor, check)
    program = export_files.trace(predictor)
    write, runner = {
        "onnx": (export_files.onnx_bytes, export_check.onnx_runner),
        "pt2": (export_files.pt2_bytes, export_check.pt2_runner),
    }[format]
    content = write(program, metadata)
    comparison = export_check.compare(predictor, runner(content), batches)
    if not comparison.is_good:
        raise UserError(f"nothing was written, the exported program computes something else: {comparison}")
    return content, str(comparison)


def write_export(output: Path, content: bytes) -> None:
    """Writes the file whole or not at all; raises UserError."""
    try:
        write_whole(output, content)
    except UserError as error:  # whose advice is for a training
        raise UserError(f"{printable(output)}: cannot be written: {error.__cause__.strerror}") from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of LORA, LORA-V or pvt")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--format", choices=export_files.FORMATS, help="where the output's suffix does not say it")
    parser.add_argument("--check", type=Path, metavar="DIR", help="folder of pictures to compare on (onnx, pt2)")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder of a text encoder's own vocabulary")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports and says what was written and how it compares.

    Raises:
        UserError: no checkpoint, a format that does not fit, an output that cannot be written, or see `export`.
    """
    options = build_parser().parse_args(arguments)
    format = find_format(options.output, options.format)
    check_output(options.output, Path(options.checkpoint))
    if format == "onnx":
        export_files.check_installed()
    predictor = load_predictor(options.checkpoint, device="cpu", bert_model=options.bert_model)
    if not get_network(predictor.name).is_pyramid:
        raise UserError(f"{printable(options.checkpoint)}: found {predictor.name}: expected lora, lora_v or pvt")
    content, account = export(predictor, format, options.check)
    card = model_card.card(predictor, options.checkpoint, options.output.name, format, account)
    write_export(options.output, content)
    model_card.write_card(options.output.with_suffix(".md"), card)
    place = printable(options.output.with_suffix(".md"))
    print(f"{printable(options.output)}: {len(content) / 1e6:.1f} MB; {account}; model card: {place}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"export.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
