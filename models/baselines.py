"""What LORA is compared with: any network of timm, alone or beside BERT, BERT alone, and the majority class."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from pytorch_pretrained_bert import BertModel
from timm.data import resolve_data_config
from torch import Tensor, nn

from models.fusion import init_xavier
from models.networks import STATISTICS, TIMM
from models.text import build_text_model, text_features


class ImageText(nn.Module):
    """A linear layer on a pooled image feature, a text feature, or both, one behind the other.

    The text feature is LORA's for the first word piece, [CLS] (docs/method.md).
    """

    def __init__(self, vision_model: nn.Module | None, text_model: BertModel | None, *, width: int, num_classes: int):
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
        """Images (B, 3, H, W) and, if it reads text, word ids and mask (B, 30) to logits (B, num_classes).

        Args:
            text_features: what `encode_text` returned, in place of ids and mask.
        """
        features = []
        if hasattr(self, "vision_model"):
            features.append(self.vision_model(images))  # (B, width)
        if hasattr(self, "text_model"):
            if text_features is None:
                text_features = self.encode_text(word_ids, word_mask)  # type: ignore[arg-type]
            features.append(text_features[:, 0])
        return self.head(torch.cat(features, dim=1))


class Majority(nn.Module):
    """Predicts the shares of the classes in train for any image."""

    counts: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the logarithms of the classes' shares (B, num_classes)."""
        shares = (self.counts + 1) / (self.counts + 1).sum()  # one more each, so that no class has none
        return shares.log().expand(images.shape[0], -1)


def build_bert(*, num_classes: int = 7, bert: Mapping[str, Any] | None = None, tunebert: bool = False) -> ImageText:
    """Builds a classifier of texts; `bert` and `tunebert`: see `models.text.build_text_model`."""
    return ImageText(None, build_text_model(bert, tunebert=tunebert), width=0, num_classes=num_classes)


def build_majority(*, num_classes: int = 7) -> Majority:
    """Builds the majority class."""
    return Majority(num_classes)


def build_timm(
    name: str,
    *,
    input_size: int,
    num_classes: int = 7,
    texts: bool = False,
    bert: Mapping[str, Any] | None = None,
    tunebert: bool = False,
    pretrained: bool | str = False,
) -> ImageText:
    """Builds a network of timm.

    Args:
        name: as timm has it.
        input_size: side of the images, pixels.
        texts: whether it is joined with BERT; `bert`, `tunebert`: see `models.text.build_text_model`.
        pretrained: whether it starts from its weights on timm's hub; or the name of a file of its weights, which timm
            reads itself: the functions that adapt a file to a network are hidden in the network's own constructor.

    Raises:
        ValueError: an unknown name, weights that do not fit or are missing, an image size that it does not take.
    """
    text_model = build_text_model(bert, tunebert=tunebert) if texts else None
    vision_model = create_timm(name, input_size, pretrained)
    width = pooled_width(vision_model, name, input_size)
    return ImageText(vision_model, text_model, width=width, num_classes=num_classes)


def create_timm(name: str, input_size: int, pretrained: bool | str) -> nn.Module:
    """A network of timm without its classifier: images (B, 3, H, W) to pooled features (B, width)."""
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5]
        advice = f"such as {', '.join(near)}" if near else "timm.list_models() names them"
        raise ValueError(f"name {TIMM}{name}: expected a network of timm {timm.__version__}, {advice}")
    settings: dict[str, Any] = {}
    default = timm.get_pretrained_cfg(name)
    if default is not None and default.fixed_input_size:
        settings["img_size"] = input_size
    source = "pretrained" if pretrained else f"name {TIMM}{name}"
    if isinstance(pretrained, str) and pretrained:
        settings["pretrained_cfg_overlay"] = {"file": pretrained}
        source = f"pretrained {pretrained}"
    try:
        return timm.create_model(name, pretrained=bool(pretrained), num_classes=0, **settings)
    except Exception as error:  # timm, its hub and each network raise their own
        raise ValueError(
            f"{source}: timm cannot build {name} for {input_size} px images: {type(error).__name__}: {one_line(error)}"
        ) from error


def input_statistics(name: str) -> dict[str, Any] | None:
    """Mean, deviation, interpolation and crop that a network of timm was pretrained with, as plain values.

    Returns:
        None if timm does not know the network, or nothing of its pretraining: ImageNet's are used then.
    """
    default = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if default is None:
        return None
    resolved = resolve_data_config(pretrained_cfg=default.to_dict())  # resolve_model_data_config without the network
    plain = {key: resolved[key] for key in STATISTICS}
    return plain | {"mean": list(resolved["mean"]), "std": list(resolved["std"])}


def pooled_width(vision_model: nn.Module, name: str, input_size: int) -> int:
    """The width of the features of an empty image; raises ValueError if the network does not take its size."""
    vision_model.eval()
    try:
        with torch.no_grad():
            features = vision_model(torch.zeros(1, 3, input_size, input_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"input_size {input_size}: {TIMM}{name} does not take such images: {one_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(f"name {TIMM}{name}: expected pooled features (1, width), found none: choose a classifier")
    vision_model.train()
    return features.shape[1]


def one_line(error: Exception) -> str:
    """The first 300 characters of an error's message, on one line."""
    return " ".join(str(error).split())[:300]
