"""The content of an exported file: metadata, traced program, and the bytes of each format.

The metadata are texts by name, the same in every format: in ONNX metadata_props, in safetensors the header, in pt2
extra files. All but `model`, `vocabulary` and `licence` are JSON.
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
from torch.export import Dim, ExportedProgram

from inference.predictor import Predictor
from models.text import MAX_TEXT_TOKENS
from readers.images import PUBLISHED, RGB_ON_WHITE
from utils import UserError

FORMATS = ("onnx", "safetensors", "pt2")
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT_NAMES = ("images", "word_ids", "word_mask")
OUTPUT_NAME = "logits"
MODES = {RGB_ON_WHITE: "RGB on white", PUBLISHED: "as published"}  # of pictures, in the metadata


def describe(predictor: Predictor) -> dict[str, str]:
    """The metadata: how a picture and a text become inputs, and logits a class."""
    size, statistics = predictor.input_size, predictor.statistics
    transform = {
        "mode": MODES[predictor.image_reading],
        "resize_short_side": int(size / statistics.crop_pct),
        "interpolation": statistics.interpolation,
        "center_crop": size,
        "mean": tuple(statistics.mean),
        "std": tuple(statistics.std),
    }
    metadata = {
        "model": predictor.name,
        "class_names": json.dumps(predictor.class_names, ensure_ascii=False),
        "transform": json.dumps(transform),
        "architecture": json.dumps(architecture(predictor)),
        "licence": "code: Apache-2.0; the training data has its own licence",
    }
    if predictor.tokenizer is not None:
        pieces = predictor.tokenizer.pieces(range(predictor.tokenizer.vocab_size))
        metadata["vocabulary"] = "\n".join(pieces)  # as in vocab.txt: the line number is the id
        metadata["max_word_ids"] = str(MAX_TEXT_TOKENS)
        metadata["lower_case"] = json.dumps(predictor.tokenizer.lower_case)
    return metadata


def architecture(predictor: Predictor) -> dict[str, object]:
    """The arguments of `models.create_model` for the network that the weights fit."""
    arguments = {"name": predictor.name, "num_classes": len(predictor.class_names)}
    arguments |= {name: predictor.settings[name] for name in predictor.network.settings}
    if predictor.network.reads_text:
        arguments["bert"] = predictor.model.text_model.config.to_dict()
    return arguments


def example_inputs(predictor: Predictor, count: int) -> list[torch.Tensor]:
    """Black images (count, 3, size, size) and, for LORA, word ids and mask (count, 30)."""
    size = predictor.input_size
    texts = 2 if predictor.tokenizer is not None else 0
    return [torch.zeros(count, 3, size, size), *torch.ones(texts, count, MAX_TEXT_TOKENS, dtype=torch.long)]


def trace(predictor: Predictor) -> ExportedProgram:
    """The network as a graph for images (B, 3, size, size) and, for LORA, word ids and mask (B, 30), for any B."""
    inputs = example_inputs(predictor, 2)  # from one image the tracer would take the batch size for a constant
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    with torch.no_grad(), quiet():
        return torch.export.export(predictor.model, tuple(inputs), dynamic_shapes=shapes, strict=False)


def onnx_bytes(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The program as an ONNX file.

    Raises:
        UserError: a package is not installed, or the file exceeds the 2 GiB that ONNX allows.
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
        raise UserError(
            f"--format onnx: expected at most 2 GiB, found {proto.ByteSize() / 2**30:.1f}; use --format pt2"
        )
    return proto.SerializeToString()


def check_installed() -> None:
    """Raises UserError if a package that ONNX needs is missing."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, not installed: python -m pip install {' '.join(missing)}"
        )


def pt2_bytes(program: ExportedProgram, metadata: dict[str, str]) -> bytes:
    """The program in the format of `torch.export.load`, the metadata as extra files."""
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
    """Hides the exporters' warnings and log messages, which are about their internals."""
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
