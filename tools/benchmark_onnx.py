"""Measures an exported network beside PyTorch: the same weights, images and threads, in turns.

    python tools/benchmark_onnx.py weights/lora_v_demo.pth --output docs/benchmarks/onnx.json

Medians of the rounds with quartiles; a forward pass of each batch size on the CPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/benchmark_onnx.py` finds the project's modules

import torch

from inference.predictor import Predictor, load_predictor
from runtime.option_types import positive_int
from tools import export_files
from tools.benchmark_measure import interleave, machine
from utils import UserError, write_json


def measure(predictor: Predictor, batch_sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of a forward pass in PyTorch and in onnxruntime, for each batch size."""
    import onnxruntime

    content = export_files.onnx_bytes(export_files.trace(predictor), export_files.describe(predictor))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    size, found = predictor.input_size, []
    for count in batch_sizes:
        inputs = [torch.randn(count, 3, size, size)]
        if predictor.tokenizer is not None:
            inputs += [torch.ones(count, 30, dtype=torch.long) for _ in range(2)]
        feed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), inputs, strict=True)}
        steps = {
            "pytorch": lambda inputs=inputs: predictor.logits(*inputs),
            "onnxruntime": lambda feed=feed: session.run(None, feed),
        }
        times = interleave(steps, "cpu", rounds=rounds, row_seconds=60)
        found.append({"batch_size": count, "seconds": times})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes the figures; raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of LORA, LORA-V or pvt")
    parser.add_argument("--batch-sizes", type=positive_int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=positive_int, default=15)
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count() or 1)
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder of a text encoder's own vocabulary")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the figures")
    options = parser.parse_args(arguments)
    export_files.check_installed()
    torch.set_num_threads(options.threads)
    predictor = load_predictor(options.checkpoint, device="cpu", bert_model=options.bert_model)
    found = measure(predictor, options.batch_sizes, options.rounds)
    print("| batch | PyTorch, ms | onnxruntime, ms | PyTorch / onnxruntime |\n|---|---|---|---|")
    for one in found:
        ours, theirs = one["seconds"]["pytorch"], one["seconds"]["onnxruntime"]
        cells = [f"{1e3 * s['median']:.2f} ({1e3 * s['lower']:.2f} to {1e3 * s['upper']:.2f})" for s in (ours, theirs)]
        print(f"| {one['batch_size']} | {' | '.join(cells)} | {ours['median'] / theirs['median']:.2f} |")
    if options.output:
        write_json(options.output, {**machine("cpu"), "checkpoint": str(options.checkpoint), "results": found})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmark_onnx.py: error: {error}", file=sys.stderr)
        sys.exit(2)
