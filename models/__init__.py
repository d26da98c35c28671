"""LORA, LORA-V and what they are compared with; `create_model` is the way in. Importing it does not import PyTorch."""

from models.networks import NETWORKS, PVT_NAMES, SETTINGS, TIMM, TOKENS, Network, create_model, get_network, names_where

__all__ = [
    "NETWORKS",
    "PVT_NAMES",
    "SETTINGS",
    "TIMM",
    "TOKENS",
    "Network",
    "create_model",
    "get_network",
    "names_where",
]
