"""What LORA is compared with: any network of timm, alone or beside BERT, BERT alone, and the majority class."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.fusion import init_xavier
from models.text import build_text_model, freeze_text_model, text_features
from utils import UserError

TIMM = "timm/"  # what a model's name begins with, before timm's own name
NAMED_BASELINES = ("bert", "majority")


def is_baseline(name: str) -> bool:
    """Whether a model is one of this file's."""
    return name.startswith(TIMM) or name in NAMED_BASELINES


class ImageText(nn.Module):
    """A pooled image feature and a text feature, either of which may be missing, joined by a linear layer.

    The text feature is that of the first word piece, [CLS], in LORA's text encoding (spec section 3).
    """

    def __init__(self, vision_model: nn.Module | None, text_model: nn.Module | None, *, width: int, num_classes: int):
        super().__init__()
        if vision_model is not None:
            self.vision_model = vision_model
        if text_model is not None:
            self.text_model = text_model
            width += text_model.config.hidden_size
        self.head = nn.Linear(width, num_classes)
        init_xavier(self.head)

    def encode_text(self, word_ids: Tensor, word_mask: Tensor) -> Tensor:
        """Word ids and mask (B, 30) to the text encoder's features (B, 30, width)."""
        return text_features(self.text_model, word_ids, word_mask)

    def forward(
        self,
        images: Tensor,
        word_ids: Tensor | None = None,
        word_mask: Tensor | None = None,
        text_features: Tensor | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) and, where it reads text, word ids and mask (B, 30) to logits (B, num_classes).

        `text_features`, as `encode_text` gives them, take the place of ids and mask.
        """
        features = []
        if hasattr(self, "vision_model"):
            features.append(self.vision_model(images))  # (B, width)
        if hasattr(self, "text_model"):
            if text_features is None:
                text_features = self.encode_text(word_ids, word_mask)
            features.append(text_features[:, 0])
        return self.head(torch.cat(features, dim=1))


class Majority(nn.Module):
    """Answers with the shares of the classes in train, whatever the image."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the logarithms of the classes' shares (B, num_classes)."""
        shares = (self.counts + 1) / (self.counts + 1).sum()  # one more each, so that no class has none
        return shares.log().expand(images.shape[0], -1)


def create_baseline(
    name: str,
    *,
    num_classes: int,
    input_size: int,
    texts: bool = False,
    bert: Mapping[str, Any] | None = None,
    tunebert: bool = False,
    pretrained: bool = False,
    weights: str = "",
) -> ImageText | Majority:
    """Builds a baseline.

    Args:
        name: "timm/" with a name of timm, "bert" or "majority".
        texts: whether a network of timm is joined with BERT; `bert`, `tunebert`: see `models.create_model`.
        pretrained: starts a network of timm from its weights on the hub; `weights`: or from those in a file.

    Raises:
        UserError: an unknown name, weights that cannot be had or do not fit, an image size that it does not take.
    """
    if name == "majority":
        return Majority(num_classes)
    text_model = None
    if name == "bert" or texts:
        text_model = build_text_model(bert)
        freeze_text_model(text_model, tunebert=tunebert)
    if name == "bert":
        return ImageText(None, text_model, width=0, num_classes=num_classes)
    vision_model = create_timm(name.removeprefix(TIMM), input_size, pretrained, weights)
    width = pooled_width(vision_model, name, input_size)
    return ImageText(vision_model, text_model, width=width, num_classes=num_classes)


def create_timm(name: str, input_size: int, pretrained: bool, weights: str) -> nn.Module:
    """A network of timm without its classifier: images (B, 3, H, W) to pooled features (B, width)."""
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5]
        advice = f"such as {', '.join(near)}" if near else "timm.list_models() names them"
        raise UserError(f"--model {TIMM}{name}: expected a network of timm {timm.__version__}, {advice}")
    settings: dict[str, Any] = {}
    default = timm.get_pretrained_cfg(name)
    if default is not None and default.fixed_input_size:
        settings["img_size"] = input_size
    if weights:
        settings["pretrained_cfg_overlay"] = {"file": weights}
    source = f"--visfinetune {weights}" if weights else "--pretrained" if pretrained else f"--model {TIMM}{name}"
    try:
        return timm.create_model(name, pretrained=pretrained or bool(weights), num_classes=0, **settings)
    except Exception as error:  # timm, its hub and each network raise their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{source}: timm cannot build {name} for {input_size} px images: {reason}") from error


def pooled_width(vision_model: nn.Module, name: str, input_size: int) -> int:
    """The width of the features, found by a pass over an empty image, which a wrong image size does not survive."""
    vision_model.eval()
    try:
        with torch.no_grad():
            features = vision_model(torch.zeros(1, 3, input_size, input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--input-size {input_size}: {name} does not take such images: {reason}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError(f"--model {name}: expected pooled features (1, width), found none: choose a classifier")
    vision_model.train()
    return features.shape[1]
