"""What a network looked at when it judged a sticker: selected patches, the class token's attention, words."""

from contextlib import ExitStack
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from inference.predictor import Picture, Prediction, Predictor
from models import names_where
from utils import UserError

Box = tuple[float, float, float, float]


class StageFocus(NamedTuple):
    """What a stage with re-attention selected: for each cell of its grid the share of heads that took it, (H', W')."""

    stage: int  # from 1 to 4
    shares: Tensor


class WordWeight(NamedTuple):
    """A piece of the text and the fusion's attention to it, the mean over heads."""

    piece: str
    weight: float


class Explanation(NamedTuple):
    """A prediction and what it is based on.

    Attributes:
        image: the sticker at its own resolution, in RGB.
        box: the part of it that the network saw, in its pixels: left, top, right, bottom. All grids lie on this part.
        focus: the selected patches of each stage with re-attention.
        class_attention: stage 4's last class-token attention to its patches, the mean over heads, (H / 32, W / 32).
        words: the pieces of the text with their weights; empty for LORA-V.
        text_weight: the fusion's attention to the text as a whole; 0 for LORA-V.
    """

    prediction: Prediction
    image: Image.Image
    box: Box
    focus: list[StageFocus]
    class_attention: Tensor
    words: list[WordWeight]
    text_weight: float


@torch.inference_mode()
def explain(predictor: Predictor, image: Picture, text: str = "") -> Explanation:
    """Runs the network once on an image and, for LORA, its text, and keeps what it attended to.

    Raises:
        UserError: the image cannot be read, or the network has no re-attention.
    """
    if not predictor.selects_patches:
        expected = names_where(lambda network: network.selects_patches)
        raise UserError(f"checkpoint: expected {expected}, found {predictor.name}, which selects no patches")
    image = predictor.picture(image)
    inputs = predictor.inputs([predictor.transform(image)], [text])
    vision, fusion = predictor.model.vision_model, predictor.model.fusion_model
    results: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name, module in (("vision", vision), ("block", vision.block4[-1]), ("fusion", fusion.attention_norm)):
            hooks.enter_context(keep_result(module, name, results))
        logits = predictor.logits(*inputs)
    size = (inputs[0].shape[2], inputs[0].shape[3])
    grids = [(size[0] // side, size[1] // side) for side in accumulate(vision.config.patch_sizes, mul)]
    weights = fusion.attn.weights(results["fusion"])[0].mean(dim=0).cpu()  # (visual tokens + words,)
    return Explanation(
        prediction=predictor.prediction(logits.double().softmax(dim=1)[0].cpu()),
        image=image,
        box=visible_box(predictor, image, size),
        focus=stage_focus(reattention_stages(predictor), results["vision"].selected, grids),
        class_attention=class_token_attention(results["block"][1]).unflatten(0, grids[3]),
        words=word_weights(predictor, inputs, weights),
        text_weight=weights[vision.num_tokens :].sum().item(),
    )


def keep_result(module: nn.Module, name: str, results: dict[str, Any]) -> Any:
    """A hook that stores what the module returns under a name; the end of its context removes it."""
    return module.register_forward_hook(lambda _, __, result: results.update({name: result}))


def reattention_stages(predictor: Predictor) -> list[int]:
    """The numbers of the stages that select patches, from 1 to 4."""
    return [stage + 1 for stage in range(4) if predictor.model.vision_model.has_class_token(stage)]


def visible_box(predictor: Predictor, image: Image.Image, size: tuple[int, int]) -> Box:
    """The part of an image that the network sees: the transform resizes it, then crops its centre to `size` (H, W)."""
    resized = predictor.transform.transforms[0](image)
    top, left = round((resized.height - size[0]) / 2), round((resized.width - size[1]) / 2)
    x, y = image.width / resized.width, image.height / resized.height
    return left * x, top * y, (left + size[1]) * x, (top + size[0]) * y


def stage_focus(stages: list[int], selected: list[Tensor], grids: list[tuple[int, int]]) -> list[StageFocus]:
    """The share of heads that took each cell, from the patch indices (1, heads, k) of each stage with re-attention."""
    focus = []
    for stage, patches in zip(stages, selected, strict=True):
        height, width = grids[stage - 1]
        counts = torch.bincount(patches[0].flatten().cpu(), minlength=height * width)
        focus.append(StageFocus(stage, (counts / patches.shape[1]).unflatten(0, (height, width))))
    return focus


def class_token_attention(attention: Any) -> Tensor:
    """The class token's row of an attention map without its own column: the mean over heads, (N - 1,), with sum 1."""
    _, rows = next(attention.of_image(0).row_blocks(1))  # (heads, 1, M)
    row = rows[:, 0, 1:].mean(dim=0).cpu()
    return row / row.sum()


def word_weights(predictor: Predictor, inputs: list[Tensor], weights: Tensor) -> list[WordWeight]:
    """The pieces of the text with their weights, without padding."""
    if predictor.tokenizer is None:
        return []
    ids, mask = inputs[1][0].cpu(), inputs[2][0].cpu()
    words = weights[predictor.model.vision_model.num_tokens :]
    pieces = predictor.tokenizer.pieces(ids[mask == 1])
    return [WordWeight(piece, weight) for piece, weight in zip(pieces, words[mask == 1].tolist(), strict=True)]
