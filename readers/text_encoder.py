"""Pretrained text encoders from a folder of either layout, or from the hub: configuration, weights, vocabulary."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from readers.checkpoint import read_weights_file, shorten
from readers.checkpoint_fields import check_encoder_config, check_state
from utils import UserError, printable

CONFIG_NAMES = ("bert_config.json", "config.json")  # pytorch-pretrained-bert's layout first
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
MAX_CONFIG_BYTES = 2**20
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
    if os.path.isdir(name):
        config, weights, vocabulary = find_files(Path(name))
    elif HUB_NAME.fullmatch(name):
        config, weights, vocabulary = fetch_files(name)
    else:
        raise UserError(f"--bert-model {printable(name)}: no such folder, and not a hub name such as bert-base-uncased")
    return TextEncoder(read_config(config, weights.stat().st_size), read_state(weights), vocabulary)


def find_files(folder: Path) -> tuple[Path, Path, Path]:
    """Configuration, weights and vocabulary of a folder."""
    found = []
    for names in (CONFIG_NAMES, WEIGHTS_NAMES, ("vocab.txt",)):
        present = [folder / name for name in names if os.path.isfile(folder / name)]
        if not present:
            raise UserError(
                f"--bert-model {printable(folder)}: lacks {' or '.join(names)}; a text encoder's folder has "
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


def read_config(path: Path, weights_bytes: int) -> dict[str, Any]:
    """The fields of a BERT configuration file that build the network, which has no more parameters than the weights."""
    source = f"--bert-model {printable(path)}"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"expected at most {MAX_CONFIG_BYTES:,} bytes, found {path.stat().st_size:,}")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: cannot be read as JSON: {printable(error)}") from error
    return check_encoder_config(config, source, weights_bytes)


def read_state(path: Path) -> dict[str, Tensor]:
    """A BERT state dict with BertModel's names: prefix, heads and old LayerNorm names are mapped."""
    source = f"--bert-model {printable(path)}"
    raw = check_state(read_weights_file(path, "--bert-model"), source, path.stat().st_size)
    prefix = "bert." if any(name.startswith("bert.") for name in raw) else ""
    state = {}
    for name, value in raw.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if name.startswith(prefix) and name != f"{prefix}embeddings.position_ids" and not name.startswith("cls."):
            state[name.removeprefix(prefix)] = value
    if "embeddings.word_embeddings.weight" not in state:
        raise UserError(f"{source}: not a BERT encoder; it holds {shorten(sorted(raw))}")
    return state
