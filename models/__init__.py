"""LORA, LORA-V and their parts; `create_model` is the way in."""

from models.baselines import create_baseline, is_baseline
from models.classifier import PVT
from models.lora import LORA, LORA_V, create_model
from models.pvt import BACKBONES
from models.text import MAX_TEXT_TOKENS
from models.vision import TOKENS, VisualFeatures, check_image_size

__all__ = [
    "BACKBONES",
    "LORA",
    "LORA_V",
    "MAX_TEXT_TOKENS",
    "PVT",
    "TOKENS",
    "VisualFeatures",
    "check_image_size",
    "create_baseline",
    "create_model",
    "is_baseline",
]
