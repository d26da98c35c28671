"""The fields of a checkpoint, checked one by one before anything uses them."""

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errors import UserError
from utils.encoder_config import check_encoder_config
from utils.messages import shown

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
