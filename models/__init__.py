"""LORA, LORA-V and their parts; `create_model` is the way in."""

from models.classifier import PVT
from models.lora import LORA, LORA_V, create_model
from models.pvt import BACKBONES
from models.text import MAX_TEXT_TOKENS
from models.vision import VisualFeatures, check_image_size

__all__ = [
    "BACKBONES",
    "LORA",
    "LORA_V",
    "MAX_TEXT_TOKENS",
    "PVT",
    "VisualFeatures",
    "check_image_size",
    "create_model",
]
