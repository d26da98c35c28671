"""The networks that are compared, each as a step that can be run many times."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import NETWORKS, create_model, get_network, textbook
from models.attention import has_bfloat16
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


def row_names(model: str, mode: str, variants: Sequence[str]) -> list[str]:
    """The rows of a table, ours first."""
    record = get_network(model)
    beside = [one.name for one in NETWORKS.values() if one.selects_patches and set(one.reads) < set(record.reads)]
    if record.reads_text and mode == "forward":
        beside.append("text encoder")
    varied = [f"{row} {variant}" for variant in variants for row in ("ours", "backbone")]
    if mode == "forward":
        varied = [row for row in varied if not row.endswith("checkpointing")]
    return ["ours", "textbook", "backbone", *beside, *varied, "pvt_v2_b2", "resnet50"]


def build_network(row: str, setting: Setting) -> tuple[nn.Module, Callable[..., Tensor]]:
    """The network of a row, and the function that computes it from what `inputs_of` gives."""
    name = row.split()[0]
    if name in ("pvt_v2_b2", "resnet50"):
        network = timm.create_model(name, num_classes=NUM_CLASSES)
    elif name == "backbone":
        network = setting.create("pvt")  # no re-attention, no local tokens, no fusion
    else:
        network = setting.create(name if name in NETWORKS else setting.model)
    if name == "textbook":
        return network, partial(textbook_logits, network, setting)
    if row == "text encoder":
        return network.text_model, lambda images, *text: text_features(network.text_model, *text)
    return network, network


def textbook_logits(network: nn.Module, setting: Setting, images: Tensor, *others: Tensor) -> Tensor:
    """Logits (B, classes) of a network with re-attention and fusion computed as the paper writes them."""
    parameters = dict(network.named_parameters())
    settings = {"alpha": setting.alpha, "locals": setting.locals, "heads": network.vision_model.config.num_heads}
    if get_network(setting.model).reads_text:
        others = text_features(network.text_model, *others[:2]), *others[2:]
    return getattr(textbook, f"{setting.model}_forward")(parameters, images, *others, **settings).logits


def inputs_of(row: str, setting: Setting, device: torch.device) -> list[Tensor]:
    """Images (B, 3, H, W) and, for a row that reads them, word ids and mask (B, 30), and topics (B,) of two each."""
    name, size = row.split()[0], setting.batch_size
    reads: Sequence[str] = ("image", "text")
    if name != "text":
        plain = name not in ("ours", "textbook", *NETWORKS)
        reads = ("image",) if plain else get_network(name if name in NETWORKS else setting.model).reads
    inputs = [torch.randn(size, 3, setting.size, setting.size, device=device)]
    if "text" in reads:
        words = torch.full((size, 30), 2000, device=device)
        inputs += [words, torch.ones_like(words)]
    if "topic" in reads:
        inputs.append(torch.arange(size, device=device) // 2)
    return inputs


def build_step(row: str, setting: Setting) -> Step:
    """A function that runs the row once: a forward pass, or a forward and backward pass and an AdamW step."""
    device = torch.device(setting.device)
    torch.manual_seed(0)
    network, forward = build_network(row, setting)
    network.to(device).train(setting.mode == "training")
    inputs = inputs_of(row, setting, device)
    if row.endswith("channels-last"):
        network.to(memory_format=torch.channels_last)
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    if row.endswith("checkpointing"):
        backbone_of(network).set_grad_checkpointing(True)
    if row.endswith("compiled"):
        forward = torch.compile(network, dynamic=False)
    dtype = torch.bfloat16 if row.endswith("bfloat16") else getattr(torch, setting.dtype)
    autocast = torch.autocast(device.type, dtype=dtype) if dtype != torch.float32 else nullcontext()
    has_bfloat16()  # which multiplies matrices at its first call: no part of a step
    if setting.mode == "training":
        step = training_step(forward, inputs, list(network.parameters()), autocast)
    else:
        step = forward_step(forward, inputs, autocast)
    if row.endswith("compiled"):
        step()  # compiling is not measured
    return step


def forward_step(forward: Callable[..., Tensor], inputs: Sequence[Tensor], autocast: Any) -> Step:
    """One forward pass without gradient."""

    def step() -> None:
        with torch.no_grad(), autocast:
            forward(*inputs)

    return step


def training_step(
    forward: Callable[..., Tensor], inputs: Sequence[Tensor], parameters: list[nn.Parameter], autocast: Any
) -> Step:
    """One step of training; the loss is not scaled for float16, which costs little."""
    device = inputs[0].device
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=device.type == "cuda")  # as main.py has it
    targets = torch.arange(len(inputs[0]), device=device) % NUM_CLASSES

    def step() -> None:
        with autocast:
            logits = forward(*inputs)
        F.cross_entropy(logits.float(), targets, label_smoothing=0.2).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
