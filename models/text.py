"""The text encoder: BERT, its last four layers averaged (paper section 4; docs/method.md)."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_pretrained_bert import BertConfig, BertModel
from torch import Tensor

MAX_TEXT_TOKENS = 30
LAYERS_AVERAGED = 4


def build_text_model(bert: Mapping[str, Any] | None, *, tunebert: bool = False) -> BertModel:
    """A BertModel with random weights.

    Args:
        bert: fields of its configuration file; None means BERT-base.
        tunebert: whether it learns, all but the pooler, whose output is not used.

    Raises:
        ValueError: fewer than four layers, or a width that the heads do not divide.
    """
    fields = BertConfig(30522).to_dict() | dict(bert or {})
    layers, width, heads = (fields[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if layers < LAYERS_AVERAGED:
        raise ValueError(f"bert has {layers} layers: expected {LAYERS_AVERAGED} at least, of which the mean is taken")
    if width % heads:
        raise ValueError(f"bert has the width {width}: expected a multiple of its {heads} attention heads")
    text_model = BertModel(BertConfig.from_dict(fields)).requires_grad_(tunebert)
    text_model.pooler.requires_grad_(False)
    return text_model


def text_features(text_model: BertModel, word_ids: Tensor, word_mask: Tensor) -> Tensor:
    """Ids and mask (B, 30) to features (B, 30, width): the mean of the last four layers, padding included."""
    learns = text_model.embeddings.word_embeddings.weight.requires_grad
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        layers, _ = text_model(word_ids, attention_mask=word_mask)
        return torch.stack(layers[-LAYERS_AVERAGED:]).mean(dim=0)
