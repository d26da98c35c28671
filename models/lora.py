"""LORA and LORA-V, put together from backbone, text encoder and fusion head (paper section 4; docs/method.md)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_pretrained_bert import BertModel
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.fusion import FirstTokenAttention, FusionBlock, init_xavier
from models.pvt import find_config, layer_matcher
from models.text import MAX_TEXT_TOKENS, build_text_model, text_features
from models.vision import VisionModel, VisualFeatures


class LORA_V(nn.Module):
    """The visual half: `logits = head(fusion(v_proj(visual tokens) + pos_embed))`."""

    def __init__(self, vision_model: VisionModel, *, num_classes: int, hidden_dim: int, fusion: Mapping[str, Any]):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, vision_model.num_tokens, hidden_dim))
        self.vision_model = vision_model
        self.v_proj = nn.Linear(vision_model.config.embed_dims[3], hidden_dim)
        self.fusion_model = FusionBlock(hidden_dim, **fusion)
        self.head = nn.Linear(hidden_dim, num_classes)
        init_head(self.pos_embed, self.v_proj, self.head)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the network, for timm's layer-wise learning rates."""
        return layer_matcher(self)

    def forward_features(self, images: Tensor, selected: Sequence[Tensor] | None = None) -> VisualFeatures:
        """Images (B, 3, H, W) to visual tokens (B, n_visual, C_4) and the patches that each stage selected."""
        return self.vision_model(images, selected)

    def forward(self, images: Tensor, selected: Sequence[Tensor] | None = None, *context: Any) -> Tensor:
        """Images (B, 3, H, W) to logits (B, num_classes); `selected`, `context`: see `VisionModel.forward`."""
        x = self.v_proj(self.vision_model(images, selected, *context).tokens)  # (B, n_visual, hidden_dim)
        return self.head(self.fusion_model(x + self.pos_embed, *context))


class LORA(nn.Module):
    """The whole network: visual and text tokens joined by the fusion head."""

    def __init__(
        self,
        vision_model: VisionModel,
        text_model: BertModel,
        *,
        num_classes: int,
        hidden_dim: int,
        fusion: Mapping[str, Any],
    ):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, vision_model.num_tokens + MAX_TEXT_TOKENS, hidden_dim))
        self.vision_model = vision_model
        self.text_model = text_model
        self.v_proj = nn.Linear(vision_model.config.embed_dims[3], hidden_dim)
        self.l_proj = nn.Linear(text_model.config.hidden_size, hidden_dim)
        self.fusion_model = FusionBlock(hidden_dim, **fusion)
        self.head = nn.Linear(hidden_dim, num_classes)
        init_head(self.pos_embed, self.v_proj, self.l_proj, self.head)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the network, for timm's layer-wise learning rates."""
        return layer_matcher(self)

    def forward_features(self, images: Tensor, selected: Sequence[Tensor] | None = None) -> VisualFeatures:
        """Images (B, 3, H, W) to visual tokens (B, n_visual, C_4) and the patches that each stage selected."""
        return self.vision_model(images, selected)

    def encode_text(self, word_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Word ids and mask (B, 30) to the text encoder's features (B, 30, width).

        In evaluation mode they depend on the text alone, so the features of a text that occurs again may be kept.
        """
        return text_features(self.text_model, word_ids, word_mask)

    def forward(
        self,
        images: Tensor,
        word_ids: Tensor | None = None,
        word_mask: Tensor | None = None,
        text_features: Tensor | None = None,
        selected: Sequence[Tensor] | None = None,
        *context: Any,
    ) -> Tensor:
        """Images (B, 3, H, W) with word ids and mask (B, 30) to logits (B, num_classes).

        Args:
            text_features: what `encode_text` returned, in place of ids and mask: the text encoder does not run.
            selected, context: see `VisionModel.forward`.
        """
        if text_features is None:
            text_features = self.encode_text(word_ids, word_mask)  # type: ignore[arg-type]
        visual = self.v_proj(self.vision_model(images, selected, *context).tokens)  # (B, n_visual, hidden_dim)
        text = self.l_proj(text_features)  # (B, 30, hidden_dim)
        x = torch.cat([visual, text], dim=1) + self.pos_embed  # (B, n_visual + 30, hidden_dim)
        return self.head(self.fusion_model(x, *context))


def build_lora(*, bert: Mapping[str, Any] | None = None, tunebert: bool = False, **settings: Any) -> LORA:
    """Builds LORA; `bert` and `tunebert`: see `models.text.build_text_model`; settings: see `build_parts`."""
    vision_model, head = build_parts(**settings)
    return LORA(vision_model, build_text_model(bert, tunebert=tunebert), **head)


def build_lora_v(**settings: Any) -> LORA_V:
    """Builds LORA-V; settings: see `build_parts`."""
    vision_model, head = build_parts(**settings)
    return LORA_V(vision_model, **head)


def build_parts(
    vision: type[VisionModel] = VisionModel,
    attention: type[FirstTokenAttention] = FirstTokenAttention,
    *,
    num_classes: int = 7,
    alpha: int = 8,
    locals: Sequence[int] = (1, 1, 1, 0),
    drop_path: float = 0.1,
    drop: float = 0.0,
    fuse_dropout_rate: float = 0.1,
    fuse_attention_dropout_rate: float = 0.0,
    hidden_dim: int = 768,
    fuse_mlp_dim: int = 3072,
    fuse_num_heads: int = 12,
    backbone: str = "pvt_small",
    tokens: str = "both",
) -> tuple[VisionModel, dict[str, Any]]:
    """The visual half, and what the heads of LORA and LORA-V are built with.

    Args:
        vision, attention: the classes of the visual half and of the fusion's attention.
        alpha, locals, tokens: see `VisionModel`; drop, drop_path: see `models.pvt.PVT`.
        fuse_dropout_rate: dropout in the fusion's MLP; fuse_attention_dropout_rate: in its attention.
        hidden_dim: width of the fusion, a multiple of its heads.
        fuse_mlp_dim: width of the fusion's MLP; fuse_num_heads: heads of its attention.
        backbone: a name of `models.pvt.BACKBONES`.
    """
    config = find_config(backbone)
    vision_model = vision(config, alpha=alpha, locals=locals, tokens=tokens, drop=drop, drop_path=drop_path)
    fusion = {
        "attention": attention,
        "mlp_dim": fuse_mlp_dim,
        "num_heads": fuse_num_heads,
        "dropout_rate": fuse_dropout_rate,
        "attention_dropout_rate": fuse_attention_dropout_rate,
    }
    return vision_model, {"num_classes": num_classes, "hidden_dim": hidden_dim, "fusion": fusion}


def init_head(pos_embed: nn.Parameter, *linears: nn.Linear) -> None:
    """Initial values of the head: position embedding truncated normal, linear layers as `init_xavier` has them."""
    trunc_normal_(pos_embed, std=0.02)
    for linear in linears:
        init_xavier(linear)
