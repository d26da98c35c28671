"""What a network looked at when it judged a sticker: selected patches, the class token's attention, words."""

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from inference.predictor import Picture, Prediction, Predictor
from utils import UserError


class StageFocus(NamedTuple):
    """What a stage with re-attention selected: for each cell of its grid the share of heads that took it, (H', W')."""

    stage: int  # from 1 to 4
    shares: Tensor


class WordWeight(NamedTuple):
    """A piece of the text, and the fusion's attention to it, the mean over heads."""

    piece: str
    weight: float


class Explanation(NamedTuple):
    """A prediction and what it rests on.

    Attributes:
        image: the picture as the network saw it, resized and cropped.
        focus: a stage's selected patches, for each stage with re-attention.
        class_attention: stage 4's last class-token attention to its patches, the mean over heads, (H / 32, W / 32).
        words: the pieces of the text with their weights; empty for LORA-V.
        text_weight: the fusion's attention to the text as a whole; 0 for LORA-V.
    """

    prediction: Prediction
    image: Image.Image
    focus: list[StageFocus]
    class_attention: Tensor
    words: list[WordWeight]
    text_weight: float


@torch.inference_mode()
def explain(predictor: Predictor, image: Picture, text: str = "") -> Explanation:
    """Runs the network once on an image and, for LORA, its text, and keeps what it attended to.

    Raises:
        UserError: an image that cannot be read, or a network without re-attention.
    """
    if not predictor.selects_patches:
        raise UserError(f"{predictor.name} selects no patches: expected a checkpoint of lora or lora_v")
    inputs = predictor.inputs([image], [text])
    seen: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name, module in watched(predictor.model).items():
            hooks.enter_context(keeping(module, name, seen))
        logits = predictor.logits(*inputs)
    grids = [(inputs[0].shape[2] // stride, inputs[0].shape[3] // stride) for stride in strides(predictor)]
    weights = predictor.model.fusion_model.attn.weights(seen["fusion"])[0].mean(dim=0).cpu()  # (n_visual + words,)
    return Explanation(
        prediction=predictor.prediction(logits.double().softmax(dim=1)[0].cpu()),
        image=to_picture(inputs[0][0]),
        focus=stage_focus(predictor, seen["vision"].selected, grids),
        class_attention=class_token_attention(seen["last block"][1]).unflatten(0, grids[3]),
        words=word_weights(predictor, inputs, weights),
        text_weight=weights[predictor.model.vision_model.num_tokens :].sum().item(),
    )


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose results tell what was attended to."""
    vision = model.vision_model
    return {"vision": vision, "last block": vision.block4[-1], "fusion": model.fusion_model.attention_norm}


def keeping(module: nn.Module, name: str, seen: dict[str, Any]) -> Any:
    """A hook, removed at the end of its context, that keeps what a module returns."""
    return module.register_forward_hook(lambda _, __, result: seen.update({name: result}))


def strides(predictor: Predictor) -> list[int]:
    """Pixels a side of a cell of each stage's grid: 4, 8, 16, 32."""
    found, stride = [], 1
    for patch in predictor.model.vision_model.config.patch_sizes:
        stride *= patch
        found.append(stride)
    return found


def stage_focus(predictor: Predictor, selected: list[Tensor], grids: list[tuple[int, int]]) -> list[StageFocus]:
    """Patch indices (1, heads, k) of each stage with re-attention to shares of heads."""
    stages = [stage for stage in range(4) if predictor.model.vision_model.has_class_token(stage)]
    focus = []
    for stage, patches in zip(stages, selected, strict=True):
        height, width = grids[stage]
        counts = torch.bincount(patches[0].flatten().cpu(), minlength=height * width)
        focus.append(StageFocus(stage + 1, (counts / patches.shape[1]).unflatten(0, (height, width))))
    return focus


def class_token_attention(attention: Any) -> Tensor:
    """The first row of a map without its own column: the mean over heads, (N - 1,), brought to sum 1."""
    _, rows = next(attention.of_image(0).row_blocks(1))  # (heads, 1, M)
    row = rows[:, 0, 1:].mean(dim=0).cpu()
    return row / row.sum()


def word_weights(predictor: Predictor, inputs: list[Tensor], weights: Tensor) -> list[WordWeight]:
    """The text's pieces with their weights, padding left out."""
    if predictor.tokenizer is None:
        return []
    ids, mask = inputs[1][0].cpu(), inputs[2][0].cpu()
    words = weights[predictor.model.vision_model.num_tokens :]
    pieces = predictor.tokenizer.pieces(ids[mask == 1])
    return [WordWeight(piece, weight) for piece, weight in zip(pieces, words[mask == 1].tolist(), strict=True)]


def to_picture(tensor: Tensor) -> Image.Image:
    """A normalised image (3, H, W) as the picture that it was."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return to_pil_image((tensor.cpu().float() * deviation + mean).clamp(0, 1))
