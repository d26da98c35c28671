"""Checkpoints as other tools write them, brought to the fields and names of this project's."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.networks import get_network
from readers.checkpoint_fields import is_dictionary, plain
from utils import UserError, printable

MODEL_KEYS = ("model", "state_dict", "model_state_dict")  # ours, mmengine's and Lightning's, PyTorch's tutorials'
AVERAGE_KEYS = ("model_ema", "state_dict_ema")  # ours, timm's
PREFIXES = ("module.", "model.")  # DistributedDataParallel and AveragedModel, Lightning
COMPILED = "_orig_mod."  # torch.compile's, of the whole network or of a part
COUNTERS = ("total_ops", "total_params", "n_averaged")  # thop's and AveragedModel's: a number each, no weights


def as_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    """What a file holds, with the weights at `model`, their average at `model_ema`, and the options at `args`.

    A dictionary without a known key is a bare state dict.
    """
    content = plain(content)
    if not any(isinstance(content.get(key), dict) for key in MODEL_KEYS) and "model" not in content:
        content = {"model": content}
    for key, others in (("model", MODEL_KEYS), ("model_ema", AVERAGE_KEYS)):
        of_others = [content[other] for other in others if isinstance(content.get(other), dict)]
        if of_others:
            content[key] = plain_names(of_others[0])
    if "args" not in content and "hyper_parameters" in content:  # Lightning's
        options = content["hyper_parameters"]
        nested = options.get("args") if isinstance(options, dict) else None
        content["args"] = nested if isinstance(nested, dict | argparse.Namespace) else options
    return content


def plain_names(state: Any) -> Any:
    """A state dict without the prefixes that wrappers put into its names, and without counters.

    What is no dictionary of tensors stays as it is, for the check of the fields to refuse.
    """
    state = plain(state)
    if not is_dictionary(state) or not all(isinstance(value, Tensor) for value in state.values()):
        return state
    state = {
        name.replace(COMPILED, ""): value
        for name, value in state.items()
        if not (is_counter(name) and value.numel() == 1)
    }
    while state and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def is_counter(name: str) -> bool:
    """Whether an entry counts operations or steps."""
    return name.rpartition(".")[2] in COUNTERS


def fields_of_export(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """The fields of a checkpoint in the metadata of a file that tools/export.py wrote; none for another file.

    Raises:
        UserError: metadata of another form.
    """
    if "architecture" not in metadata:
        return {}
    try:
        architecture, transform = json.loads(metadata["architecture"]), json.loads(metadata.get("transform", "{}"))
        network = get_network(architecture["name"], texts="vocabulary" in metadata)
        fields = {
            "args": {name: architecture[name] for name in network.settings}
            | {"model": network.name, "input_size": transform["center_crop"]},
            "class_names": json.loads(metadata["class_names"]),
            "bert_config": architecture.get("bert"),
        }
        if "vocabulary" in metadata:
            fields["vocabulary"] = metadata["vocabulary"] + "\n"
            fields["lower_case"] = json.loads(metadata.get("lower_case", "true"))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{source}: expected the metadata of an export, found others ({type(error).__name__}: {printable(error)}); "
            "export it again with tools/export.py"
        ) from error
    return fields
