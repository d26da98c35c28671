"""Makes a checkpoint small enough to ship: the weights alone, in float16, with what evaluates them.

    python -m tools.shrink_checkpoint runs/pretraining/checkpoint_pvt.pth weights/pvt_demo.pth --without-head
    python -m tools.shrink_checkpoint runs/demo-v/checkpoint_v_best.pth weights/lora_v_demo.pth

--visfinetune, --finetune and --resume ... --eval read the file like the original checkpoint. Evaluate both to measure
what the rounding costs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()

import torch

from readers.checkpoint import read_checkpoint
from readers.checkpoint_fields import Checkpoint
from tools.start import start
from utils import UserError, write_checkpoint

KEPT = (  # what `read_start` asks for
    "epoch", "args", "class_names", "bert_config", "vocabulary_sha256", "lower_case", "vocabulary",
)  # fmt: skip


def shrink(checkpoint: Checkpoint, *, without_head: bool) -> dict[str, Any]:
    """A checkpoint's weights in float16 and the fields that say what they are; integers stay as they are."""
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in checkpoint.model.items()
        if not (without_head and name.startswith("head."))
    }
    return {"model": weights} | {name: value for name in KEPT if (value := getattr(checkpoint, name)) is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads, shrinks, writes, and says how large the file is and by how much a weight changed at most.

    Raises:
        UserError: a checkpoint that cannot be read, weights too large for float16, an output that cannot be written.
    """
    parser = argparse.ArgumentParser(description="Makes a checkpoint small enough to ship.")
    parser.add_argument("checkpoint", help="of a training")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--without-head", action="store_true", help="leave out the classifier, for --visfinetune")
    options = parser.parse_args(arguments)
    checkpoint = read_checkpoint(options.checkpoint, "checkpoint")
    small = shrink(checkpoint, without_head=options.without_head)
    for name, value in small["model"].items():
        if not torch.isfinite(value).all():
            raise UserError(f"{options.checkpoint}: {name} is not finite in float16; it cannot be shrunk")
    try:
        write_checkpoint([options.output], small)
    except OSError as error:
        raise UserError(f"{options.output} cannot be written: {error}") from error
    changes = [
        (value.float() - checkpoint.model[name].float()).abs().max().item()
        for name, value in small["model"].items()
        if value.numel()
    ]
    size = options.output.stat().st_size / 1e6
    print(f"{options.output}: {len(changes)} tensors, {size:.1f} MB, no weight changed by more than {max(changes):.1e}")


if __name__ == "__main__":
    start(main)
