"""A trained model for use from Python, rebuilt from its checkpoint alone:

from inference.predictor import load_predictor

predictor = load_predictor("runs/demo-v/checkpoint_v_best.pth")
predictions = predictor(["sticker.png"])            # LORA: predictor(images, texts)
print(predictions[0].label, predictions[0].probabilities)
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from datasets import InputStatistics, build_transform
from inference.bare_weights import read_settings
from models import Network, create_model
from models.vision import check_image_size
from readers.checkpoint import load_state, read_checkpoint
from readers.checkpoint_fields import Checkpoint
from readers.data_sets import DATA_SETS
from readers.images import RGB_ON_WHITE, as_rgb, read_image
from readers.text_encoder import encoder_of
from readers.tokenizer import Tokenizer
from utils import UserError, choose_device

ADVICE = (
    "its own settings (args) or, if it has none, the shapes of its weights say which network it is: take the "
    "checkpoint that the training wrote, or evaluate it with main.py or main_V.py, --resume FILE --eval, and "
    "the training's flags"
)
Picture = Image.Image | str | Path


class Prediction(NamedTuple):
    """The most probable class of an image, and each class's probability, the largest first."""

    label: str
    probabilities: dict[str, float]


class Predictor:
    """A network in evaluation mode with all that leads from pictures and texts to it.

    Attributes:
        network: its record; `name` is the record's.
        settings: those of its architecture, and of its training `input_size`, `dataset`, `protocol`, `best_metric`,
            `image_reading`.
        class_names: of its labels, in order.
        tokenizer: None for a network that reads no texts.
        statistics: the mean, deviation, interpolation and crop of its images.
        transform: brings a picture in RGB to the tensor (3, size, size).
    """

    def __init__(
        self,
        network: Network,
        model: nn.Module,
        settings: Mapping[str, Any],
        class_names: Sequence[str],
        tokenizer: Tokenizer | None,
        device: torch.device,
    ):
        self.network = network
        self.name = network.name
        self.model: Any = model.to(device).eval()
        self.settings = dict(settings)
        self.class_names = tuple(class_names)
        self.tokenizer = tokenizer
        self.device = device
        self.statistics = InputStatistics(**(self.settings.get("input_statistics") or {}))
        self.transform: Any = build_transform(False, input_size=self.input_size, statistics=self.statistics)

    @property
    def input_size(self) -> int:
        """The side of the images that it reads, in pixels."""
        return self.settings["input_size"]

    @property
    def image_reading(self) -> str:
        """How pictures are read, one of `readers.images.READINGS`."""
        return self.settings.get("image_reading") or RGB_ON_WHITE

    @property
    def selects_patches(self) -> bool:
        """Whether the network has local re-attention."""
        return self.network.selects_patches

    def __call__(self, images: Sequence[Picture | Tensor], texts: Sequence[str] | None = None) -> list[Prediction]:
        """The prediction for each image; LORA takes a text for each, '' if there is none.

        Args:
            images: pictures, files, or what `tensor` made of them.

        Raises:
            UserError: an image that cannot be read, or another number of texts than of images.
        """
        if not images:
            return []
        return self.predictions(*self.inputs(images, texts))

    def picture(self, image: Picture) -> Image.Image:
        """A picture or a file in RGB, read as in the network's training; raises UserError."""
        if isinstance(image, Image.Image):
            return as_rgb(image, reading=self.image_reading)
        return read_image(image, reading=self.image_reading)

    def tensor(self, image: Picture) -> Tensor:
        """A picture or a file as the network sees it, (3, size, size); raises UserError."""
        return self.transform(self.picture(image))

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
        """What `inputs` gives to logits (B, classes) in float32; raises UserError if they are not finite."""
        logits = self.model(*inputs).float()
        if not logits.isfinite().all():
            raise UserError("the logits are not finite numbers: are the weights a trained model's?")
        return logits

    def predictions(self, *inputs: Tensor) -> list[Prediction]:
        """The prediction for each image of what `inputs` gives; raises UserError if a logit is not finite."""
        probabilities = self.logits(*inputs).double().softmax(dim=1).cpu()
        return [self.prediction(row) for row in probabilities]

    def prediction(self, probabilities: Tensor) -> Prediction:
        """Probabilities (classes,) with their names."""
        order = probabilities.argsort(descending=True, stable=True).tolist()
        named = {self.class_names[i]: probabilities[i].item() for i in order}
        return Prediction(self.class_names[order[0]], named)


def load_predictor(path: str | Path, *, device: str = "auto", bert_model: str = "") -> Predictor:
    """Builds a network again from its checkpoint, LORA's text encoder included.

    Nothing is downloaded, unless `path` is an address or `bert_model` a hub name.

    Args:
        path: a checkpoint of a training, a shrunk one, a published one, or weights of tools/export.py; a moving average
            is preferred.
        device: auto, cpu, cuda or mps.
        bert_model: the text encoder's folder or archive, for a vocabulary of its own, and for a published checkpoint
            with another encoder than BERT-base.

    Raises:
        UserError: a file that is no checkpoint, or not one of this project's networks.
    """
    return build_predictor(read_checkpoint(path, "checkpoint"), f"checkpoint {path}", device, bert_model)


def build_predictor(checkpoint: Checkpoint, source: str, device: str = "auto", bert_model: str = "") -> Predictor:
    """The predictor of a checkpoint; see `load_predictor`. `source` is what messages call the file."""
    network, num_classes = checkpoint.network, checkpoint.num_classes
    checkpoint.optimizer = None  # as large as the network, which is built before this is let go
    if num_classes is None:
        raise UserError(f"{source}: expected the weights of a whole network, found none of a head")
    if network.is_pyramid and not checkpoint.args:
        checkpoint.args = read_settings(checkpoint.model, network)
        if checkpoint.args:
            told = ", ".join(f"{name} {value}" for name, value in checkpoint.args.items())
            print(
                f"warning: {source}: holds no settings; read off the weights, images as usual: {told}", file=sys.stderr
            )
    settings = checkpoint.settings
    input_size, dataset = checkpoint.setting("input_size"), str(checkpoint.args.get("dataset", "SER"))
    tokenizer = None
    if network.reads_text:
        settings["bert"], tokenizer = encoder_of(checkpoint, bert_model, source)
    try:
        if network.is_pyramid:
            check_image_size(input_size, input_size, settings["alpha"] if network.selects_patches else 1)
        model = create_model(network.name, num_classes=num_classes, **settings)
    except ValueError as error:  # begins with the name of a setting, which comes from the file
        raise UserError(f"{source}: {error}; is it a checkpoint of LORA?") from error
    load_state(model, checkpoint.model_ema or checkpoint.model, source, advice=ADVICE)
    return Predictor(
        network,
        model,
        checkpoint.settings
        | {"input_size": input_size, "input_statistics": checkpoint.setting("input_statistics")}
        | {"dataset": dataset, **{name: checkpoint.args.get(name) for name in ("protocol", "best_metric")}}
        | {"image_reading": checkpoint.image_reading},
        names_of(checkpoint, dataset, num_classes),
        tokenizer,
        choose_device(device, 0),
    )


def names_of(checkpoint: Checkpoint, dataset: str, num_classes: int) -> Sequence[str]:
    """The class names of a checkpoint; those of its data set for a published one, which has none; else numbers."""
    record = DATA_SETS.get(dataset)
    for names in (checkpoint.class_names, record.names if record else ()):
        if names and len(names) == num_classes:
            return names
    return [f"class {number}" for number in range(num_classes)]
