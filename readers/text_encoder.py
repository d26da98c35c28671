"""Pretrained text encoders: configuration, weights and vocabulary, of --bert-model or of a checkpoint."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from readers.checkpoint import read_file, shorten
from readers.checkpoint_fields import Checkpoint, check_encoder_config, check_state
from readers.encoder_files import CONFIG_NAMES, TEXT_NAMES, WEIGHTS_NAMES, encoder_folder, names_another
from readers.files import read_bytes
from readers.tokenizer import (
    BERT_VOCABULARY,
    DEFAULT_VOCABULARY,
    EXPECTED,
    MAX_VOCABULARY_BYTES,
    REMEDY,
    Tokenizer,
    is_lower_case,
)
from utils import UserError, is_main_process, print0, printable

MAX_CONFIG_BYTES = 2**20
BERT_BASE = {"vocab_size": BERT_VOCABULARY, "hidden_size": 768, "num_hidden_layers": 12}
LAYER = re.compile(r"text_model\.encoder\.layer\.(\d+)\.")


class TextEncoder(NamedTuple):
    """Configuration fields, state dict with BertModel's names, and the tokenizer of a text encoder."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Tokenizer


def load_text_encoder(name: str) -> TextEncoder:
    """Reads the text encoder that `--bert-model` names: a folder, an archive, or a hub name.

    Without `vocab.txt` it gets the shipped vocabulary, if that has as many pieces as the encoder has embeddings.

    Raises:
        UserError: a folder that is missing or lacks a file, or an encoder of another kind.
    """
    source = f"--bert-model {printable(name)}"
    with encoder_folder(name, weights=True) as folder:
        weights, config = find_file(folder, WEIGHTS_NAMES), find_file(folder, CONFIG_NAMES)
        for path, names in ((config, CONFIG_NAMES), (weights, WEIGHTS_NAMES)):
            if path is None:
                raise UserError(
                    f"{source}: lacks {' or '.join(names)}; a text encoder's folder has bert_config.json or "
                    "config.json, model.safetensors or pytorch_model.bin, and vocab.txt"
                )
        assert config is not None
        assert weights is not None
        fields = read_config(config, f"{source}/{config.name}", weights.stat().st_size)
        tokenizer = read_tokenizer(folder, name)
        state = read_state(weights, f"{source}/{weights.name}")
    if tokenizer is None:
        tokenizer = shipped_tokenizer(fields, source)
        print0(
            f"{source}: has no vocab.txt; {DEFAULT_VOCABULARY.name} of bert-base-uncased is used, which fits in size"
        )
    elif tokenizer.lower_case and 100 * tokenizer.capitals > tokenizer.vocab_size:
        print0(
            f"warning: {source}: {tokenizer.capitals:,} of its word pieces have capital letters, but texts are "
            f"lower-cased: if the encoder is cased, write {TEXT_NAMES[1]} with do_lower_case false beside vocab.txt"
        )
    check_vocabulary(tokenizer, fields, source)
    return TextEncoder(fields, state, tokenizer)


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that is a file of the folder."""
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def read_tokenizer(folder: Path, name: str, lower_case: bool | None = None) -> Tokenizer | None:
    """The tokenizer of an encoder's folder, which messages call `name`; None if it has no vocabulary."""
    path = folder / TEXT_NAMES[0]
    if not os.path.isfile(path):
        return None
    if lower_case is None:
        lower_case = is_lower_case(folder / TEXT_NAMES[1], Path(name) / TEXT_NAMES[1])
    content = read_bytes(path, EXPECTED, REMEDY, MAX_VOCABULARY_BYTES)
    return Tokenizer(Path(name) / TEXT_NAMES[0], lower_case, content=content)


def shipped_tokenizer(config: Mapping[str, Any] | None, source: str) -> Tokenizer:
    """The tokenizer of the shipped vocabulary; raises UserError if the encoder has another number of word pieces."""
    tokenizer, known = Tokenizer(DEFAULT_VOCABULARY), (config or BERT_BASE)["vocab_size"]
    if tokenizer.vocab_size != known:
        raise UserError(
            f"{source}: its text encoder knows {known:,} word pieces, {DEFAULT_VOCABULARY} has "
            f"{tokenizer.vocab_size:,}, and there is no vocab.txt: put the encoder's own into the folder that "
            "--bert-model names"
        )
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: Mapping[str, Any] | None, source: str) -> None:
    """Raises UserError for a vocabulary with pieces that the text encoder has no embedding for."""
    known = (config or BERT_BASE)["vocab_size"]
    if tokenizer.vocab_size > known:
        raise UserError(
            f"{source}: its text encoder knows {known:,} word pieces, the vocabulary has {tokenizer.vocab_size:,}: "
            "name the encoder's own with --bert-model"
        )


def read_config(path: Path, source: str, weights_bytes: int) -> dict[str, Any]:
    """The fields of a BERT configuration file that build the network, which has no more parameters than the weights."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"expected at most {MAX_CONFIG_BYTES:,} bytes, found {path.stat().st_size:,}")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: cannot be read as JSON: {printable(error)}") from error
    return check_encoder_config(config, source, weights_bytes)


def read_state(path: Path, source: str) -> dict[str, Tensor]:
    """A BERT state dict with BertModel's names: prefix, heads and old LayerNorm names are mapped."""
    raw = check_state(read_file(path, source), source, path.stat().st_size)
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


def encoder_of(checkpoint: Checkpoint, bert_model: str, source: str) -> tuple[dict[str, Any] | None, Tokenizer]:
    """Configuration (None: BERT-base) and tokenizer of a checkpoint's text encoder.

    What the file does not hold, as a published one, comes from the encoder that --bert-model names, if it names
    another than the default. The vocabulary is then the named encoder's, else the shipped one. Texts are lower-cased
    if the file does not say otherwise.

    Args:
        source: flag and file of the checkpoint, for messages.

    Raises:
        UserError: the checkpoint's vocabulary is not there, or its encoder is another than the configuration's.
    """
    config, tokenizer = checkpoint.bert_config, known_tokenizer(checkpoint, source)
    sha256, lower_case = checkpoint.vocabulary_sha256, checkpoint.lower_case is not False
    if (config is None or tokenizer is None) and names_another(bert_model):
        with encoder_folder(bert_model, weights=False) as folder:
            path = find_file(folder, CONFIG_NAMES)
            if config is None and path is not None:
                size = sum(value.nbytes for value in checkpoint.model.values())
                config = read_config(path, f"--bert-model {printable(bert_model)}/{path.name}", size)
            tokenizer = tokenizer or read_tokenizer(folder, bert_model, lower_case)
    if sha256 and (tokenizer is None or tokenizer.sha256 != sha256):
        raise UserError(
            f"{source}: the checkpoint's vocabulary is neither {DEFAULT_VOCABULARY} nor in --bert-model "
            f"{printable(bert_model)}: name the folder of its text encoder with --bert-model"
        )
    if checkpoint.bert_config is None:
        check_encoder(checkpoint, config, source)
    if tokenizer is None:
        tokenizer = shipped_tokenizer(config, source)
        if config and is_main_process():
            print(f"{source}: no vocab.txt in --bert-model; {DEFAULT_VOCABULARY} is used", file=sys.stderr)
    check_vocabulary(tokenizer, config, source)
    return config, tokenizer


def known_tokenizer(checkpoint: Checkpoint, source: str) -> Tokenizer | None:
    """The tokenizer of a checkpoint that holds its vocabulary or was trained with the shipped one; else None."""
    lower_case = checkpoint.lower_case is not False
    if checkpoint.vocabulary is not None:
        content = checkpoint.vocabulary.encode("utf-8", "surrogatepass")
        return Tokenizer(f"{source}: vocabulary", lower_case, content=content)
    shipped = Tokenizer(DEFAULT_VOCABULARY, lower_case)
    return shipped if shipped.sha256 == checkpoint.vocabulary_sha256 else None


def check_encoder(checkpoint: Checkpoint, config: Mapping[str, Any] | None, source: str) -> None:
    """Raises UserError if the weights are of another text encoder than the configuration, which is not the file's."""
    embeddings = checkpoint.model.get("text_model.embeddings.word_embeddings.weight")
    layers = {layer[1] for layer in map(LAYER.match, checkpoint.model) if layer}
    if embeddings is None or embeddings.ndim != 2 or not layers:
        return  # loading the weights says what is missing
    own = dict(zip(BERT_BASE, (*embeddings.shape, len(layers)), strict=True))
    named = {name: (config or BERT_BASE)[name] for name in own}
    if own != named:
        raise UserError(
            f"{source}: expected a text encoder with {listed(named)} ({'--bert-model' if config else 'BERT-base'}), "
            f"found {listed(own)}: name the folder of its text encoder with --bert-model"
        )


def listed(fields: Mapping[str, int]) -> str:
    """Fields of a configuration with their values."""
    return ", ".join(f"{name} {value}" for name, value in fields.items())
