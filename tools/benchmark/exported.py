"""Compares an exported network in onnxruntime with PyTorch: same weights, images and threads, on the CPU.

python -m tools.benchmark onnx weights/lora_v_demo.pth --output docs/benchmarks/onnx.json
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from inference.predictor import Predictor, load_predictor
from runtime.option_types import positive_int
from tools.benchmark.measure import format_table, interleave, spread, timed, where
from tools.exporting import files


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="of LORA, LORA-V or pvt")
    parser.add_argument("--batch-sizes", type=positive_int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=positive_int, default=15)
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count() or 1)
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder of a text encoder's own vocabulary")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The facts and a forward pass's times at each batch size; raises UserError for a missing package or checkpoint."""
    files.check_installed()
    torch.set_num_threads(options.threads)
    predictor = load_predictor(options.checkpoint, device="cpu", bert_model=options.bert_model)
    return {"checkpoint": options.checkpoint}, measure(predictor, options.batch_sizes, options.rounds)


def measure(predictor: Predictor, batch_sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of a forward pass in PyTorch and in onnxruntime, for each batch size."""
    import onnxruntime

    content = files.onnx_bytes(files.trace(predictor), files.describe(predictor))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    results = []
    for count in batch_sizes:
        inputs = files.example_inputs(predictor, count)
        inputs[0].normal_()
        feed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), inputs, strict=True)}
        steps = {
            "pytorch": partial(timed, partial(predictor.logits, *inputs)),
            "onnxruntime": partial(timed, partial(session.run, None, feed)),
        }
        results.append({"batch_size": count, "seconds": interleave(steps, rounds=rounds, row_seconds=60)})
    return results


def onnx_table(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Both times of each batch size."""
    lines = []
    for one in results:
        pytorch, onnx = one["seconds"]["pytorch"], one["seconds"]["onnxruntime"]
        cells = [spread(seconds, unit=1e-3, digits=2) for seconds in (pytorch, onnx)]
        lines.append([str(one["batch_size"]), *cells, f"{pytorch['median'] / onnx['median']:.2f}"])
    heads = ["batch", "PyTorch, ms (quartiles)", "onnxruntime, ms (quartiles)", "PyTorch / onnxruntime"]
    return f"{facts['checkpoint']}; {where(facts)}.\n\n{format_table(heads, lines)}\n"
