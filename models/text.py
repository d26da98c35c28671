"""The text encoder: BERT, its last four layers averaged (spec section 3)."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_pretrained_bert import BertConfig, BertModel
from torch import Tensor

from utils import UserError

MAX_TEXT_TOKENS = 30
LAYERS_AVERAGED = 4


def build_text_model(bert: Mapping[str, Any] | None) -> BertModel:
    """A BertModel with random weights; `bert` holds fields of its configuration file, None means BERT-base.

    Raises:
        UserError: a field that is missing or a layout that the text features cannot be taken from.
    """
    fields = BertConfig(30522).to_dict() | dict(bert or {})
    if fields["num_hidden_layers"] < LAYERS_AVERAGED:
        raise UserError(
            f"--bert-model: the text encoder has {fields['num_hidden_layers']} layers, at least {LAYERS_AVERAGED} "
            "expected: the features are the mean of the last four"
        )
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise UserError(
            f"--bert-model: the text encoder's width {fields['hidden_size']} is not divisible by its "
            f"{fields['num_attention_heads']} attention heads"
        )
    return BertModel(BertConfig.from_dict(fields))


def freeze_text_model(text_model: BertModel, *, tunebert: bool) -> None:
    """Sets which parameters learn: all but the pooler, whose output is not used, or none without `tunebert`."""
    text_model.requires_grad_(tunebert)
    text_model.pooler.requires_grad_(False)


def text_features(text_model: BertModel, word_ids: Tensor, word_mask: Tensor) -> Tensor:
    """Ids and mask (B, 30) to features (B, 30, width): the mean of the last four layers, padding included."""
    learns = text_model.embeddings.word_embeddings.weight.requires_grad
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        layers, _ = text_model(word_ids, attention_mask=word_mask)
        return torch.stack(layers[-LAYERS_AVERAGED:]).mean(dim=0)
