"""The networks that the benchmark compares, each as a step that can be run again and again."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import create_model, get_network, textbook
from models.pvt import backbone_of
from models.text import text_features

NUM_CLASSES = 7
VARIANTS = ("compiled", "channels-last", "checkpointing", "bfloat16")

Step = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What is measured: the network, its input, and a forward pass or a training step."""

    model: str
    backbone: str
    locals: tuple[int, ...]
    alpha: int
    size: int  # side of the image, pixels
    batch_size: int
    dtype: str  # of the forward pass; weights stay in float32
    device: str
    mode: str  # "forward" or "training"

    def create(self, model: str) -> nn.Module:
        """A network with the settings that it takes."""
        settings = {name: getattr(self, name) for name in ("backbone", "alpha", "locals")}
        known = get_network(model).settings
        return create_model(
            model, num_classes=NUM_CLASSES, **{name: value for name, value in settings.items() if name in known}
        )


class Textbook(nn.Module):
    """Re-attention and fusion as the paper writes them: `models.textbook` on the network's own parameters."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.network = setting.create(setting.model)
        heads = self.network.vision_model.config.num_heads
        self.settings = {"alpha": setting.alpha, "locals": setting.locals, "heads": heads}

    def forward(self, images: Tensor, *text: Tensor) -> Tensor:
        """Images (B, 3, H, W), for LORA word ids and mask as well, to logits (B, classes)."""
        parameters = dict(self.network.named_parameters())
        if not text:
            return textbook.lora_v_forward(parameters, images, **self.settings).logits
        features = text_features(self.network.text_model, *text)
        return textbook.lora_forward(parameters, images, features, **self.settings).logits


class TextEncoder(nn.Module):
    """LORA's text encoder alone."""

    def __init__(self, setting: Setting):
        super().__init__()
        self.text_model = setting.create("lora").text_model

    def forward(self, images: Tensor, *text: Tensor) -> Tensor:
        """Word ids and mask to features; the images are not looked at."""
        return text_features(self.text_model, *text)


def row_names(model: str, mode: str, variants: Sequence[str]) -> list[str]:
    """The rows of a table, ours first."""
    with_text = ["lora_v", *(["text encoder"] if mode == "forward" else [])] if model == "lora" else []
    varied = [f"{row} {variant}" for variant in variants for row in ("ours", "backbone")]
    if mode == "forward":
        varied = [row for row in varied if not row.endswith("checkpointing")]
    return ["ours", "textbook", "backbone", *with_text, *varied, "pvt_v2_b2", "resnet50"]


def build_network(row: str, setting: Setting) -> nn.Module:
    """The network of a row, a variant's name behind it or not."""
    name = row.split()[0]
    if row == "text encoder":
        return TextEncoder(setting)
    if name == "textbook":
        return Textbook(setting)
    if name == "backbone":
        return setting.create("pvt")  # the limit: no re-attention, no local tokens, no fusion
    if name in ("ours", "lora_v"):
        return setting.create(setting.model if name == "ours" else "lora_v")
    return timm.create_model(name, num_classes=NUM_CLASSES)


def build_step(row: str, setting: Setting) -> Step:
    """A function that runs the row once: a forward pass, or a forward and backward pass and an AdamW step."""
    device = torch.device(setting.device)
    torch.manual_seed(0)
    network = build_network(row, setting).to(device).train(setting.mode == "training")
    images = torch.randn(setting.batch_size, 3, setting.size, setting.size, device=device)
    if row.endswith("channels-last"):
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if row.endswith("checkpointing"):
        backbone_of(network).set_grad_checkpointing(True)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if row.endswith("compiled"):
        network = torch.compile(network, dynamic=False)
    inputs = [images]
    if setting.model == "lora" and row.split()[0] in ("ours", "textbook", "text"):
        words = torch.full((setting.batch_size, 30), 2000, device=device)
        inputs += [words, torch.ones_like(words)]
    dtype = torch.bfloat16 if row.endswith("bfloat16") else getattr(torch, setting.dtype)
    autocast = torch.autocast(device.type, dtype=dtype) if dtype != torch.float32 else nullcontext()
    if setting.mode == "training":
        step = training_step(network, inputs, learning, autocast)
    else:
        step = forward_step(network, inputs, autocast)
    if row.endswith("compiled"):
        step()  # compiling is not measured
    return step


def forward_step(network: nn.Module, inputs: Sequence[Tensor], autocast: Any) -> Step:
    """One forward pass without gradient."""

    def step() -> None:
        with torch.no_grad(), autocast:
            network(*inputs)

    return step


def training_step(network: nn.Module, inputs: Sequence[Tensor], learning: list[nn.Parameter], autocast: Any) -> Step:
    """One step of training; the loss is not scaled for float16, which costs nothing to speak of."""
    optimizer = torch.optim.AdamW(learning, lr=1e-6)
    targets = torch.arange(len(inputs[0]), device=inputs[0].device) % NUM_CLASSES

    def step() -> None:
        with autocast:
            logits = network(*inputs)
        F.cross_entropy(logits.float(), targets, label_smoothing=0.2).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
