"""LORA, LORA-V and what they are compared with; `create_model` builds one by its name, loading its module late."""

from models.networks import NETWORKS, SETTINGS, TIMM, TOKENS, Network, create_model, get_network

__all__ = ["NETWORKS", "SETTINGS", "TIMM", "TOKENS", "Network", "create_model", "get_network"]
