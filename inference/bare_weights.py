"""Settings of a network that its weights tell: for a file that holds nothing else."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models import SETTINGS, Network
from models.pvt import BACKBONES, PVTConfig
from models.text import MAX_TEXT_TOKENS

STAGES = range(1, 5)
INPUT_SIZES = {"pvt_demo": 64}  # pixels, of the shipped weights; the paper's for any other backbone


def read_settings(state: Mapping[str, Tensor], network: Network) -> dict[str, Any]:
    """The settings that the shapes of the weights tell, and the image size that is usual for the backbone.

    Returns:
        No settings at all if the weights are those of no backbone of this project, or have other tokens than the
        paper's: loading them says what differs.
    """
    prefix = "vision_model." if network.selects_patches else ""
    try:
        name, config = find_backbone(state, prefix)
    except (KeyError, StopIteration, IndexError):
        return {}
    settings: dict[str, Any] = {"backbone": name}
    if network.selects_patches:
        locals_ = [int(f"{prefix}local_proj{stage}.0.weight" in state) for stage in STAGES]
        alpha = find_alpha(state, config, locals_, MAX_TEXT_TOKENS if network.reads_text else 0)
        if not alpha:
            return {}
        settings |= {"locals": locals_, "alpha": alpha, "hidden_dim": state["v_proj.weight"].shape[0]}
    return settings | {"input_size": INPUT_SIZES.get(name, SETTINGS["input_size"].default)}


def find_backbone(state: Mapping[str, Tensor], prefix: str) -> tuple[str, PVTConfig]:
    """The backbone with the widths and depths of the weights; raises StopIteration if there is none."""
    widths = tuple(state[f"{prefix}patch_embed{stage}.proj.weight"].shape[0] for stage in STAGES)
    blocks = {tuple(name.removeprefix(prefix).split(".")[:2]) for name in state}  # ("block1", "0"), ...
    depths = tuple(sum(part == f"block{stage}" for part, *_ in blocks) for stage in STAGES)
    return next(item for item in BACKBONES.items() if (item[1].embed_dims, item[1].depths) == (widths, depths))


def find_alpha(state: Mapping[str, Tensor], config: PVTConfig, locals_: list[int], words: int) -> int:
    """Patches a head that re-attention selects, from the length of the fused sequence; 0 if it is not the paper's."""
    length = state["pos_embed"].shape[1] - words if "pos_embed" in state and "v_proj.weight" in state else 0
    uses = [*locals_[:3], 1]  # stage 4 always has its class token and local tokens
    each = sum(
        use * heads * reduction**2
        for use, heads, reduction in zip(uses, config.num_heads, config.reductions, strict=True)
    )
    alpha, rest = divmod(length - sum(uses), each)
    return alpha if alpha > 0 and not rest else 0
