"""Pretrained text encoders from a folder of either layout, or from the hub: configuration, weights, vocabulary."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from errors import UserError
from utils.checkpoint import read_weights_file, shorten

CONFIG_NAMES = ("bert_config.json", "config.json")  # pytorch-pretrained-bert's layout first
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
REQUIRED_FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# What the encoder's code computes whatever the configuration says; another value would be silently ignored.
FIXED_FIELDS = {"model_type": "bert", "position_embedding_type": "absolute", "layer_norm_eps": 1e-12}
ACTIVATIONS = ("gelu", "relu", "swish")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class TextEncoder(NamedTuple):
    """Configuration fields, state dict with BertModel's names, and the vocabulary file of a text encoder."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    vocabulary: Path


def load_text_encoder(name: str) -> TextEncoder:
    """Reads the text encoder that `--bert-model` names: a folder, or a hub name fetched into the hub's cache.

    Raises:
        UserError: a folder that is missing or lacks a file, or an encoder of another kind.
    """
    if Path(name).is_dir():
        config, weights, vocabulary = find_files(Path(name))
    elif HUB_NAME.fullmatch(name):
        config, weights, vocabulary = fetch_files(name)
    else:
        raise UserError(f"--bert-model {name}: no such folder, and not a hub name such as bert-base-uncased")
    return TextEncoder(read_config(config), read_state(weights), vocabulary)


def find_files(folder: Path) -> tuple[Path, Path, Path]:
    """Configuration, weights and vocabulary of a folder."""
    found = []
    for names in (CONFIG_NAMES, WEIGHTS_NAMES, ("vocab.txt",)):
        present = [folder / name for name in names if (folder / name).is_file()]
        if not present:
            raise UserError(
                f"--bert-model {folder}: lacks {' or '.join(names)}; a text encoder's folder has "
                "bert_config.json or config.json, model.safetensors or pytorch_model.bin, and vocab.txt"
            )
        found.append(present[0])
    return found[0], found[1], found[2]


def fetch_files(name: str) -> tuple[Path, Path, Path]:
    """Fetches configuration, weights and vocabulary of a hub model into the hub's cache."""
    try:
        config = hf_hub_download(name, "config.json")
        vocabulary = hf_hub_download(name, "vocab.txt")
        try:
            weights = hf_hub_download(name, WEIGHTS_NAMES[0])
        except HfHubHTTPError:  # older models have the pickle alone
            weights = hf_hub_download(name, WEIGHTS_NAMES[1])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"--bert-model {name}: no such folder, and the hub gave no such model "
            f"({type(error).__name__}); download it elsewhere and give its folder"
        ) from error
    return Path(config), Path(weights), Path(vocabulary)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a BERT encoder."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--bert-model {path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"--bert-model {path}: expected a JSON object, found {type(config).__name__}")
    for field in REQUIRED_FIELDS:
        if type(config.get(field)) is not int or config[field] < 1:
            raise UserError(f"--bert-model {path}: {field} is {config.get(field)!r}: expected a positive integer")
    for field, value in FIXED_FIELDS.items():
        if config.get(field, value) != value:
            raise UserError(f"--bert-model {path}: {field} is {config[field]!r}: only {value!r} is supported")
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise UserError(f"--bert-model {path}: hidden_act is {config['hidden_act']!r}: expected one of {ACTIVATIONS}")
    return config


def read_state(path: Path) -> dict[str, Tensor]:
    """A BERT state dict with BertModel's names: prefix, heads and old LayerNorm names are mapped."""
    raw = read_weights_file(path, "--bert-model")
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise UserError(f"--bert-model {path}: expected a dictionary of tensors")
    prefix = "bert." if any(name.startswith("bert.") for name in raw) else ""
    state = {}
    for name, value in raw.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if name.startswith(prefix) and name != f"{prefix}embeddings.position_ids" and not name.startswith("cls."):
            state[name.removeprefix(prefix)] = value
    if "embeddings.word_embeddings.weight" not in state:
        raise UserError(f"--bert-model {path}: not a BERT encoder; it holds {shorten(sorted(raw))}")
    return state
