"""LORA and LORA-V, put together of backbone, text encoder and fusion head (paper section 4); the way to any network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.classifier import PVT
from models.fusion import FusionBlock, init_xavier
from models.layers import layer_matcher
from models.pvt import BACKBONES
from models.text import MAX_TEXT_TOKENS, build_text_model, freeze_text_model, text_features
from models.vision import VisionModel, VisualFeatures
from utils import UserError


class LORA_V(nn.Module):
    """The visual half: `logits = head(fusion(v_proj(visual tokens) + pos_embed))`."""

    def __init__(self, vision_model: VisionModel, *, num_classes: int, hidden_dim: int, dropout: Mapping[str, float]):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, vision_model.num_tokens, hidden_dim))
        self.vision_model = vision_model
        self.v_proj = nn.Linear(vision_model.norm.normalized_shape[0], hidden_dim)
        self.fusion_model = FusionBlock(hidden_dim, **dropout)
        self.head = nn.Linear(hidden_dim, num_classes)
        init_head(self.pos_embed, self.v_proj, self.head)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the network, for timm's layer-wise learning rates."""
        return layer_matcher(self)

    def forward_features(self, images: Tensor) -> VisualFeatures:
        """Images (B, 3, H, W) to visual tokens (B, n_visual, C_4) and the patches that each stage selected."""
        return self.vision_model(images)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, num_classes)."""
        x = self.v_proj(self.forward_features(images).tokens)  # (B, n_visual, hidden_dim)
        return self.head(self.fusion_model(x + self.pos_embed))


class LORA(nn.Module):
    """The whole network: visual and text tokens joined by the fusion head."""

    def __init__(
        self,
        vision_model: VisionModel,
        text_model: nn.Module,
        *,
        num_classes: int,
        hidden_dim: int,
        dropout: Mapping[str, float],
    ):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, vision_model.num_tokens + MAX_TEXT_TOKENS, hidden_dim))
        self.vision_model = vision_model
        self.text_model = text_model
        self.v_proj = nn.Linear(vision_model.norm.normalized_shape[0], hidden_dim)
        self.l_proj = nn.Linear(text_model.config.hidden_size, hidden_dim)
        self.fusion_model = FusionBlock(hidden_dim, **dropout)
        self.head = nn.Linear(hidden_dim, num_classes)
        init_head(self.pos_embed, self.v_proj, self.l_proj, self.head)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the network, for timm's layer-wise learning rates."""
        return layer_matcher(self)

    def forward_features(self, images: Tensor) -> VisualFeatures:
        """Images (B, 3, H, W) to visual tokens (B, n_visual, C_4) and the patches that each stage selected."""
        return self.vision_model(images)

    def encode_text(self, word_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Word ids and mask (B, 30) to the text encoder's features (B, 30, width).

        In evaluation mode they depend on the text alone, so that those of a text that comes again may be kept.
        """
        return text_features(self.text_model, word_ids, word_mask)

    def forward(
        self,
        images: Tensor,
        word_ids: Tensor | None = None,
        word_mask: Tensor | None = None,
        text_features: Tensor | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) with word ids and mask (B, 30) to logits (B, num_classes).

        `text_features`, as `encode_text` gives them, take the place of ids and mask: the text encoder does not run.
        """
        if text_features is None:
            text_features = self.encode_text(word_ids, word_mask)
        visual = self.v_proj(self.forward_features(images).tokens)  # (B, n_visual, hidden_dim)
        text = self.l_proj(text_features)  # (B, 30, hidden_dim)
        x = torch.cat([visual, text], dim=1) + self.pos_embed  # (B, n_visual + 30, hidden_dim)
        return self.head(self.fusion_model(x))


def create_model(
    name: str,
    *,
    num_classes: int = 7,
    alpha: int = 8,
    locals: Sequence[int] = (1, 1, 1, 0),
    drop_path: float = 0.1,
    drop: float = 0.0,
    fuse_dropout_rate: float = 0.1,
    fuse_attention_dropout_rate: float = 0.0,
    hidden_dim: int = 768,
    backbone: str = "pvt_small",
    tokens: str = "both",
    bert: Mapping[str, Any] | None = None,
    tunebert: bool = False,
) -> LORA | LORA_V | PVT:
    """Builds a network with the initial values of the spec; no file and no network connection is touched.

    Args:
        name: "lora" (called as `model(images, word_ids, word_mask)`), "lora_v" or "pvt" (`model(images)`), of which the
            last is the backbone as a classifier and has neither `alpha` nor `locals`.
        backbone: a name of `models.pvt.BACKBONES`.
        tokens: which tokens the fusion sees, see `models.vision.VisionModel`.
        bert: fields of the text encoder's configuration; None means BERT-base. For "lora" only.
        tunebert: whether the text encoder learns.

    Raises:
        UserError: an unknown name, or a value that does not fit; the message names the flag.
    """
    if backbone not in BACKBONES:
        raise UserError(f"--backbone {backbone!r} is unknown: expected one of {', '.join(BACKBONES)}")
    if name == "pvt":
        return PVT(BACKBONES[backbone], num_classes=num_classes, drop=drop, drop_path=drop_path)
    rates = {"drop": drop, "drop_path": drop_path}
    vision_model = VisionModel(BACKBONES[backbone], alpha=alpha, locals=locals, tokens=tokens, **rates)
    head: dict[str, Any] = {
        "num_classes": num_classes,
        "hidden_dim": hidden_dim,
        "dropout": {"dropout_rate": fuse_dropout_rate, "attention_dropout_rate": fuse_attention_dropout_rate},
    }
    if name == "lora_v":
        return LORA_V(vision_model, **head)
    if name == "lora":
        text_model = build_text_model(bert)
        freeze_text_model(text_model, tunebert=tunebert)
        return LORA(vision_model, text_model, **head)
    raise UserError(f"--model {name!r} is unknown: expected lora, lora_v or pvt")


def init_head(pos_embed: nn.Parameter, *linears: nn.Linear) -> None:
    """Initial values of the head (spec section 4)."""
    trunc_normal_(pos_embed, std=0.02)
    for linear in linears:
        init_xavier(linear)
