"""Position embeddings of a backbone that was trained at another image size, brought to this model's grid."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from models.pvt import interpolate_position_embedding

CLASS_TOKEN_STAGE = 4  # its position embedding has one vector more, in front, for the class token (spec section 1)


def fit_position_embeddings(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Brings `pos_embed{i}`, (1, cells, C), of a backbone's state to the grids of `own`, as the forward pass does it.

    An embedding that is not a square grid of the same width stays as it is, for `load_state` to refuse.

    Args:
        state: the file's entries with the backbone's names.
        own: the backbone's own state dict.

    Returns:
        The entries, and what was done to them, to be put after `load_state`'s account; '' where nothing was.
    """
    fitted, changes = dict(state), []
    for stage in range(1, 5):
        name, extra = f"pos_embed{stage}", int(stage == CLASS_TOKEN_STAGE)
        if name not in state or name not in own:
            continue
        old, new = grid_side(state[name], extra), grid_side(own[name], extra)
        if not old or not new or old == new or state[name].shape[2] != own[name].shape[2]:
            continue
        front, cells = state[name].tensor_split([extra], dim=1)
        cells = interpolate_position_embedding(cells.float(), (new, new)).to(front.dtype)  # (1, new * new, C)
        fitted[name] = torch.cat([front, cells], dim=1)
        changes.append(f"{name} from {old} x {old} to {new} x {new}")
    return fitted, f"; interpolated bilinearly: {', '.join(changes)}" if changes else ""


def grid_side(position_embedding: Tensor, extra: int) -> int:
    """Cells a side of an embedding (1, extra + G * G, C) of floating-point numbers; 0 where it is no square grid."""
    if position_embedding.ndim != 3 or position_embedding.shape[0] != 1 or not position_embedding.is_floating_point():
        return 0
    cells = max(position_embedding.shape[1] - extra, 0)
    return math.isqrt(cells) if math.isqrt(cells) ** 2 == cells else 0
