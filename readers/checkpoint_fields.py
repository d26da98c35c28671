"""The fields of a checkpoint, checked one by one before anything uses them."""

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils import UserError, shown

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


MAX_SIDE = 8192  # of an image, in pixels

MAX_NUMBER = 10**9  # of epochs, steps and architecture: more is a mistake, and would be printed at full length


class Field(NamedTuple):
    """What a field of a checkpoint must be: a test of its value, and the same in words."""

    fits: Callable[[Any], bool]
    expected: str


def is_count(value: Any, low: int = 0) -> bool:
    """An integer from `low`, within reason."""
    return type(value) is int and low <= value <= MAX_NUMBER


def is_number(value: Any) -> bool:
    """A finite number that is no boolean."""
    return type(value) in (int, float) and abs(value) <= 1e30 and math.isfinite(value)


def is_name(value: Any) -> bool:
    """A short text on one line."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def is_best(value: Any) -> bool:
    """The best epoch so far, counted from 0 (-1: none yet), and its numbers, of which `acc1`, in per cent, is one."""
    numbers = isinstance(value, dict) and all(is_name(key) and is_number(number) for key, number in value.items())
    return numbers and 0 <= value.get("acc1", -1) <= 100 and is_count(value.get("epoch"), low=-1)


def is_scaler(value: Any) -> bool:
    """The state of a GradScaler, empty where it was not enabled."""
    names = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
    if not isinstance(value, dict) or not value:
        return isinstance(value, dict)
    numbers = names <= value.keys() and all(is_number(number) and number >= 0 for number in value.values())
    return numbers and value["scale"] > 0 and value["growth_factor"] > 1 and 0 < value["backoff_factor"] < 1


def is_dictionary(value: Any) -> bool:
    """A dictionary with texts as keys."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def is_list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    """A list whose items all fit."""
    return isinstance(value, list) and all(map(fits, value))


def is_entry(value: Any) -> bool:
    """An entry of a log: its epoch, and the accuracy by which the best epoch is chosen."""
    is_log = is_dictionary(value) and is_count(value.get("epoch"))
    return is_log and is_number(value.get("val_acc1", value.get("test_acc1")))


# Fields that any checkpoint may have, and those that only --resume reads. A field that is in neither is not read.
START_FIELDS = {
    "args": Field(is_dictionary, "a dictionary or Namespace of options"),
    "bert_config": Field(lambda value: value is None or is_dictionary(value), "a dictionary or None"),
    "class_names": Field(lambda value: is_list_of(value, is_name), "a list of class names"),
    "vocabulary_sha256": Field(lambda value: value is None or is_name(value), "a checksum or None"),
}

RESUME_FIELDS = {
    "epoch": Field(lambda value: is_count(value, low=-1), "an integer from -1"),
    "step": Field(is_count, "an integer from 0"),
    "best": Field(is_best, "a dictionary with the numbers acc1 and epoch"),
    "optimizer": Field(is_dictionary, "a dictionary"),
    "lr_scheduler": Field(is_dictionary, "a dictionary"),
    "scaler": Field(is_scaler, "a dictionary with a GradScaler's numbers"),
    "epoch_seconds": Field(is_number, "a number of seconds"),
    "history": Field(lambda value: is_list_of(value, is_entry), "the entries of a log, each with an epoch"),
    "processes": Field(lambda value: is_list_of(value, is_dictionary), "a dictionary for each process"),
    "model_ema": Field(is_dictionary, "a dictionary of tensors"),
}

ARCHITECTURE = {
    "backbone": Field(is_name, "a name"),
    "alpha": Field(is_count, "a positive integer"),
    "hidden_dim": Field(is_count, "a positive integer"),
    "input_size": Field(lambda value: is_count(value) and value <= MAX_SIDE, f"pixels, at most {MAX_SIDE}"),
    "dataset": Field(is_name, "a name"),
    "locals": Field(lambda value: is_list_of(value, is_count) and len(value) == 4, "a list of 4 integers"),
}


def check_fields(checkpoint: dict[str, Any], flag: str, source: str, file_bytes: int) -> dict[str, Any]:
    """The fields of a checkpoint that its flag reads, `model` among them; `args`, if read, becomes a dictionary.

    Args:
        source: flag and file, for messages.
        file_bytes: the size of the file.

    Raises:
        UserError: a field of another type or out of bounds, with its name.
    """
    fields = {"--visfinetune": {}, "--finetune": START_FIELDS}.get(flag, START_FIELDS | RESUME_FIELDS)
    arguments = checkpoint.get("args")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    checkpoint = checkpoint | {"args": {} if arguments is None else arguments}
    found = {name: plain(checkpoint[name]) for name in fields if name in checkpoint}
    check(found, fields, source)
    check(found.get("args", {}), ARCHITECTURE, f"{source}, args")
    if found.get("bert_config") is not None:
        found["bert_config"] = check_encoder_config(found["bert_config"], f"{source}, bert_config", file_bytes)
    for name in {"model", "model_ema"} & (found.keys() | {"model"}):
        found[name] = check_state(checkpoint[name], source, file_bytes)
    return found


def plain(value: Any) -> Any:
    """A dictionary as nothing but that: a hostile OrderedDict may hide its methods behind attributes."""
    return dict(dict.items(value)) if isinstance(value, dict) else value


def check(values: dict[str, Any], fields: dict[str, Field], source: str) -> None:
    """Raises UserError for the first of the values, where they are there, that does not fit its field."""
    for name, field in fields.items():
        if name in values and not field.fits(values[name]):
            found = f"{type(values[name]).__name__} {shown(values[name])}"
            raise UserError(f"{source}: {name}: expected {field.expected}, found {found}; is it a checkpoint of LORA?")


def check_state(state: Any, source: str, file_bytes: int) -> dict[str, Tensor]:
    """A state dict as a plain dictionary, all of whose tensors are dense, on the CPU and wholly in the file.

    Raises:
        UserError: anything else.
    """
    state = plain(state)
    if not is_dictionary(state) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{source}: its model is not a dictionary of tensors; is it a checkpoint of this project?")
    for name, value in state.items():
        problem = find_problem(value)
        if problem:
            raise UserError(f"{source}: {shown(name)}: expected a plain tensor of numbers, found {problem}")
    state = {name: value.detach() for name, value in state.items()}
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    if sum(storages.values()) > file_bytes:
        raise UserError(f"{source}: its tensors claim {sum(storages.values()):,} bytes, the file has {file_bytes:,}")
    return state


def find_problem(value: Tensor) -> str:
    """What keeps a tensor from being copied into a parameter, or ''."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return f"one with layout {value.layout}, type {value.dtype}, on {value.device}"
    if value.is_complex():
        return f"type {value.dtype}"
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"shape {shown(list(value.shape))}, more than is stored"
    return ""
