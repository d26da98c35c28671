"""What an exported model is made of: its metadata, the traced program, and the bytes of each format.

The metadata are texts by name, the same in every format: ONNX has them as metadata_props, safetensors in its header,
pt2 as extra files. All but `model`, `vocabulary` and `licence` are JSON.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator

import safetensors.torch
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.export import Dim, ExportedProgram

from inference.predictor import Predictor
from models.text import MAX_TEXT_TOKENS
from runtime.weights import architecture_options
from utils import UserError

FORMATS = ("onnx", "safetensors", "pt2")
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT_NAMES = ("images", "word_ids", "word_mask")
OUTPUT_NAME = "logits"


def describe(predictor: Predictor) -> dict[str, str]:
    """The metadata: all that leads from a picture and a text to the inputs, and from the logits to a class."""
    size = predictor.options.input_size
    transform = {
        "mode": "RGB on white",
        "resize_short_side": int(256 / 224 * size),
        "interpolation": "bicubic",
        "center_crop": size,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
    metadata = {
        "model": predictor.name,
        "class_names": json.dumps(predictor.class_names, ensure_ascii=False),
        "transform": json.dumps(transform),
        "architecture": json.dumps(architecture(predictor)),
        "licence": "code: Apache-2.0; the data that the weights were learned from has a licence of its own",
    }
    if predictor.tokenizer is not None:
        pieces = predictor.tokenizer.pieces(range(predictor.tokenizer.vocab_size))
        metadata["vocabulary"] = "\n".join(pieces)  # as in vocab.txt: the number of the line is the id
        metadata["max_word_ids"] = str(MAX_TEXT_TOKENS)
    return metadata


def architecture(predictor: Predictor) -> dict[str, object]:
    """The arguments of `models.create_model` that make the network which the weights fit."""
    names = architecture_options(predictor.name)
    found = {"name": predictor.name, "num_classes": len(predictor.class_names)}
    found |= {name: getattr(predictor.options, name) for name in names}
    if predictor.name == "lora":
        found["bert"] = predictor.model.text_model.config.to_dict()
    return found


def trace(predictor: Predictor) -> ExportedProgram:
    """The network as a graph for images (B, 3, size, size) and, for LORA, word ids and mask (B, 30), for any B."""
    size = predictor.options.input_size
    inputs = [torch.zeros(2, 3, size, size)]  # two images: of one, the tracer would take the batch for a constant
    if predictor.tokenizer is not None:
        inputs += [torch.ones(2, MAX_TEXT_TOKENS, dtype=torch.long) for _ in range(2)]
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    with torch.no_grad(), quiet():
        return torch.export.export(predictor.model, tuple(inputs), dynamic_shapes=shapes, strict=False)


def onnx_bytes(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The program as an ONNX file.

    Raises:
        UserError: a package is not installed, or the weights are more than the 2 GiB that an ONNX file may have.
    """
    check_installed()
    inputs = program.example_inputs[0]
    shapes = tuple({0: "batch"} for _ in inputs)
    with torch.no_grad(), quiet():
        exported = torch.onnx.export(
            program, inputs, dynamo=True, verbose=False, output_names=[OUTPUT_NAME], dynamic_shapes=shapes
        )
        proto = exported.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    if proto.ByteSize() >= 2**31:
        raise UserError(f"an ONNX file holds at most 2 GiB, found {proto.ByteSize() / 2**30:.1f}: use --format pt2")
    return proto.SerializeToString()


def check_installed() -> None:
    """Raises UserError where a package is missing that ONNX needs."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, not installed: python -m pip install {' '.join(missing)}"
        )


def pt2_bytes(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The program as `torch.export.load` reads it, the metadata as extra files."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def safetensors_bytes(predictor: Predictor, metadata: dict[str, str]) -> bytes:
    """The weights under their names in `models`, the metadata in the header."""
    weights = {name: value.contiguous() for name, value in predictor.model.state_dict().items()}
    return safetensors.torch.save(weights, metadata)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' remarks on their own insides from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
