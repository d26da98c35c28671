"""The configuration of a BERT encoder, from a folder or a checkpoint: only fields that are used, all within bounds."""

from collections.abc import Mapping
from typing import Any

from errors import UserError
from utils.messages import shown

REQUIRED_FIELDS = {  # largest values, beyond any published encoder
    "vocab_size": 2**22,
    "hidden_size": 2**15,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "intermediate_size": 2**17,
}
OPTIONAL_FIELDS = {"max_position_embeddings": 2**20, "type_vocab_size": 2**10}
SMALLEST = {"max_position_embeddings": 30}  # ids of a text (spec section 3)
SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
# What the encoder's code computes whatever the configuration says; another value would be silently ignored.
FIXED_FIELDS = {"model_type": "bert", "position_embedding_type": "absolute", "layer_norm_eps": 1e-12}
ACTIVATIONS = ("gelu", "relu", "swish")
SPARE_PARAMETERS = 2**26  # what a configuration may ask for beyond a parameter a byte of the weights' file


def check_encoder_config(config: Any, source: str, weights_bytes: int) -> dict[str, Any]:
    """The fields of a BERT configuration that build the network, after a look at each.

    Args:
        source: flag and file, for messages.
        weights_bytes: the size of the file with the weights, from which the network can take no more parameters.

    Raises:
        UserError: a field is missing, of another type or out of bounds, or asks for another kind of network.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{source}: expected an object with the encoder's fields, found {type(config).__name__}")
    limits = REQUIRED_FIELDS | {name: limit for name, limit in OPTIONAL_FIELDS.items() if name in config}
    for name, limit in limits.items():
        value, smallest = config.get(name), SMALLEST.get(name, 1)
        if type(value) is not int or not smallest <= value <= limit:
            raise UserError(f"{source}: {name} is {shown(value)}: expected an integer from {smallest} to {limit}")
    for name in SHARES:
        value = config.get(name, 0)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"{source}: {name} is {shown(value)}: expected a number from 0 to below 1")
    for name, expected in FIXED_FIELDS.items():
        if config.get(name, expected) != expected:
            raise UserError(f"{source}: {name} is {shown(config[name])}: only {expected!r} is supported")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"{source}: hidden_act is {shown(activation)}: expected one of {', '.join(ACTIVATIONS)}")
    parameters = count_parameters(config)
    if parameters > weights_bytes + SPARE_PARAMETERS:
        raise UserError(f"{source}: describes {parameters:,} parameters, but the weights have {weights_bytes:,} bytes")
    return {name: config[name] for name in (*limits, *SHARES, "hidden_act") if name in config}


def count_parameters(config: Mapping[str, Any]) -> int:
    """How many parameters the matrices of the encoder have."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    rows = config["vocab_size"] + config.get("max_position_embeddings", 512) + config.get("type_vocab_size", 2)
    return rows * width + config["num_hidden_layers"] * (4 * width**2 + 2 * width * inner)
