"""The layers of a network in order, for learning rates that fall from the head to the images (timm's layer decay)."""

import re
from collections.abc import Callable

from torch import nn

BLOCK = re.compile(r"(?:vision_model\.)?block(\d)\.(\d+)\.")
STAGE_INPUT = re.compile(r"(?:vision_model\.)?(?:(?:patch_embed|pos_embed|cls_token)(\d)|cls_token$)")
TEXT_LAYER = re.compile(r"text_model\.encoder\.layer\.(\d+)\.")


def layer_matcher(model: nn.Module) -> Callable[[str], int]:
    """A function from a parameter's name to the number of its layer, as timm's `group_matcher` wants it.

    The backbone's blocks count through all stages from 1; what embeds a stage belongs to the block before it, so that
    the first stage's embedding is 0. The text encoder's layers count so that its last stands beside the last block.
    All else (projections, fusion, head) is the layer after the last block.
    """
    depths = [len(model.vision_model.get_submodule(f"block{stage}")) for stage in range(1, 5)]
    text_layers = len(model.text_model.encoder.layer) if hasattr(model, "text_model") else 0
    last = sum(depths)

    def number(name: str) -> int:
        if block := BLOCK.match(name):
            return 1 + sum(depths[: int(block[1]) - 1]) + int(block[2])
        if stage := STAGE_INPUT.match(name):
            return sum(depths[: int(stage[1] or 4) - 1])  # `cls_token` without a number is stage 4's
        if layer := TEXT_LAYER.match(name):
            return max(last - text_layers + 1 + int(layer[1]), 0)
        return max(last - text_layers, 0) if name.startswith("text_model.embeddings.") else last + 1

    return number
