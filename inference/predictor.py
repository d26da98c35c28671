"""A trained model for use from Python, rebuilt from its checkpoint alone:

from inference.predictor import load_predictor

predictor = load_predictor("runs/demo-v/checkpoint_v_best.pth")
predictions = predictor(["sticker.png"])            # LORA: predictor(images, texts)
print(predictions[0].label, predictions[0].probabilities)
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from datasets import build_transform
from models import get_network
from models.vision import check_image_size
from readers.annotations import CLASS_NAMES
from readers.checkpoint import read_checkpoint
from readers.images import as_rgb, read_image
from readers.tokenizer import Tokenizer
from runtime.options import parse_options
from runtime.weights import architecture_options, build_model, find_tokenizer, model_of, naming_flags, reads_texts
from utils import UserError, choose_device

DEFAULT_SIZE = 448

Picture = Image.Image | str | Path


class Prediction(NamedTuple):
    """The most probable class of an image, and each class's probability, the largest first."""

    label: str
    probabilities: dict[str, float]


class Predictor:
    """A network in evaluation mode with all that leads from pictures and texts to it.

    Attributes:
        name: as --model has it; `options`: what it was trained with; `class_names`: of its labels, in order.
        tokenizer: None for a network that reads no texts; `transform`: a picture in RGB to the tensor (3, size, size).
    """

    def __init__(
        self,
        model: nn.Module,
        options: Namespace,
        class_names: Sequence[str],
        tokenizer: Tokenizer | None,
        device: torch.device,
    ):
        self.name = options.model
        self.model = model.to(device).eval()
        self.options = options
        self.class_names = tuple(class_names)
        self.tokenizer = tokenizer
        self.device = device
        self.transform = build_transform(False, input_size=options.input_size)

    @property
    def selects_patches(self) -> bool:
        """Whether the network has local re-attention."""
        return get_network(self.name).selects_patches

    def __call__(self, images: Sequence[Picture | Tensor], texts: Sequence[str] | None = None) -> list[Prediction]:
        """The prediction for each image; LORA takes a text for each, '' where there is none.

        Args:
            images: pictures, files, or what `tensor` made of them.

        Raises:
            UserError: an image that cannot be read, or another number of texts than of images.
        """
        if not images:
            return []
        probabilities = self.logits(*self.inputs(images, texts)).double().softmax(dim=1).cpu()
        return [self.prediction(row) for row in probabilities]

    def tensor(self, image: Picture) -> Tensor:
        """A picture or a file as the network sees it, (3, size, size); raises UserError."""
        return self.transform(as_rgb(image) if isinstance(image, Image.Image) else read_image(image))

    def inputs(self, images: Sequence[Picture | Tensor], texts: Sequence[str] | None = None) -> list[Tensor]:
        """What the network is called with: images (B, 3, H, W) and, for LORA, word ids and mask (B, 30)."""
        inputs = [torch.stack([one if isinstance(one, Tensor) else self.tensor(one) for one in images])]
        texts = [""] * len(images) if texts is None else list(texts)
        if len(texts) != len(images):
            raise UserError(f"texts: expected one for each of {len(images)} images, found {len(texts)}")
        if self.tokenizer is not None:
            words = [self.tokenizer.encode(text) for text in texts]
            inputs += [torch.stack(tensors) for tensors in zip(*words, strict=True)]
        return [tensor.to(self.device) for tensor in inputs]

    @torch.inference_mode()
    def logits(self, *inputs: Tensor) -> Tensor:
        """What `inputs` gives to logits (B, classes) in float32; raises UserError where they are not finite."""
        logits = self.model(*inputs).float()
        if not logits.isfinite().all():
            raise UserError("the logits are not finite numbers: are the weights a trained model's?")
        return logits

    def prediction(self, probabilities: Tensor) -> Prediction:
        """Probabilities (classes,) with their names."""
        order = probabilities.argsort(descending=True, stable=True).tolist()
        named = {self.class_names[i]: probabilities[i].item() for i in order}
        return Prediction(self.class_names[order[0]], named)


def load_predictor(path: str | Path, *, device: str = "auto", bert_model: str = "") -> Predictor:
    """Rebuilds a network from its checkpoint, LORA's text encoder included; nothing is downloaded.

    Args:
        path: a checkpoint of a training, a shrunk one, or a published one; with a moving average, that is taken.
        device: auto, cpu, cuda or mps.
        bert_model: a folder with the vocabulary, for a text encoder with one of its own.

    Raises:
        UserError: a file that is no checkpoint, or not one of this project's networks.
    """
    source = f"checkpoint {path}"
    start = read_checkpoint(path, "checkpoint")
    options = parse_options([], {})
    options.model = model_of(start)
    for name in architecture_options(options.model):
        setattr(options, name, start["args"].get(name, getattr(options, name)))
    options.input_size = start["args"].get("input_size", DEFAULT_SIZE)
    options.dataset = start["args"].get("dataset", options.dataset)
    options.resume, options.eval, options.bert_model = str(path), True, bert_model
    options.model_ema = "model_ema" in start
    head = start["model"].get("counts" if options.model == "majority" else "head.weight")
    if head is None or head.ndim == 0:
        raise UserError(f"{source}: expected the weights of a whole network, found none of a head")
    tokenizer = find_tokenizer(options, start.get("vocabulary_sha256")) if reads_texts(options) else None
    network = get_network(options.model)
    if network.is_pyramid:
        with naming_flags():
            check_image_size(options.input_size, options.input_size, options.alpha if network.selects_patches else 1)
    model = build_model(options, start, head.shape[0], say=lambda account: None)
    class_names = names_of(start, options.dataset, head.shape[0])
    return Predictor(model, options, class_names, tokenizer, choose_device(device, 0))


def names_of(start: dict[str, Any], dataset: str, num_classes: int) -> Sequence[str]:
    """The class names of a checkpoint; those of its data set for a published one, which has none; else numbers."""
    for names in (start.get("class_names"), CLASS_NAMES.get(dataset)):
        if names and len(names) == num_classes:
            return names
    return [f"class {number}" for number in range(num_classes)]
