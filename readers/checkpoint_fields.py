"""The fields of a checkpoint, checked one by one before anything uses them."""

import argparse
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.networks import PVT_NAMES, SETTINGS, Network, Setting, get_network, is_count
from readers.images import READINGS, RGB_ON_WHITE
from utils import UserError, is_printable, shown, typed

REQUIRED_FIELDS = {  # largest values, beyond any published encoder
    "vocab_size": 2**22,
    "hidden_size": 2**15,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "intermediate_size": 2**17,
}

OPTIONAL_FIELDS = {"max_position_embeddings": 2**20, "type_vocab_size": 2**10}
SMALLEST = {"max_position_embeddings": 30}  # ids of a text
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


def is_number(value: Any) -> bool:
    """A finite number that is no boolean."""
    return type(value) in (int, float) and abs(value) <= 1e30 and math.isfinite(value)


def is_line(value: Any) -> bool:
    """A short text on one line."""
    return isinstance(value, str) and is_printable(value) and len(value) <= 200


def is_best(value: Any) -> bool:
    """The best epoch so far, counted from 0 (-1: none yet), and its numbers, of which `acc1`, in per cent, is one."""
    numbers = isinstance(value, dict) and all(is_line(key) and is_number(number) for key, number in value.items())
    return numbers and 0 <= value.get("acc1", -1) <= 100 and is_count(value.get("epoch"), -1)


def is_scaler(value: Any) -> bool:
    """The state of a GradScaler, empty if it was not enabled."""
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
    is_log = is_dictionary(value) and is_count(value.get("epoch"), 0)
    return is_log and is_number(value.get("val_acc1", value.get("test_acc1")))


TOPIC_WEIGHT = "fusion_model.attn.conv.weight"  # TGCA-PVT has it, LORA does not


@dataclass
class Checkpoint:
    """What a checkpoint holds: the fields of its file, which has no others that are read.

    A bare state dict is a checkpoint with `model` alone.

    Attributes:
        args: the options of the run that wrote it.
        lower_case: whether texts are lower-cased; None in a file that does not say so, whose texts are.
        vocabulary: the text of the vocabulary, in an export.
        epoch: the last finished one; `step`: the batches of the next one that are done.
        history: the entries of the log.
        processes: the random states, losses and skipped images of each process.
        from_published: whether the run continued one of the published script, whose rates and schedule it follows.
    """

    model: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    bert_config: dict[str, Any] | None = None
    class_names: list[str] | None = None
    vocabulary_sha256: str | None = None
    lower_case: bool | None = None
    vocabulary: str | None = None
    epoch: int | None = None
    step: int = 0
    epoch_seconds: float = 0.0
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    optimizer: dict[str, Any] | None = None
    lr_scheduler: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    model_ema: dict[str, Tensor] | None = None
    processes: list[dict[str, Any]] = field(default_factory=list)
    from_published: bool | None = None

    @property
    def network(self) -> Network:
        """The network that it is of: that of its `args` if its weights do not tell, else as their names say."""
        with suppress(ValueError):
            network = get_network(str(self.args.get("model", "")), texts=self.setting("texts"))
            if not network.is_pyramid or (network.reads_topics and TOPIC_WEIGHT in self.model):
                return network
        parts = {name.partition(".")[0] for name in self.model}
        if TOPIC_WEIGHT in self.model:
            return get_network("tgca_pvt" if "text_model" in parts else "tgca_pvt_v")
        return get_network("lora" if "text_model" in parts else "pvt" if "patch_embed1" in parts else "lora_v")

    def setting(self, name: str) -> Any:
        """A setting of the architecture, as it was trained; the paper's if the file has none."""
        return self.known_settings.get(name, SETTINGS[name].default)

    @property
    def known_settings(self) -> dict[str, Any]:
        """What the file tells of its architecture, by its options or otherwise.

        `--model` of the published script names the backbone; older files have 12 heads, and their weights the width of
        the fusion MLP.
        """
        known = {name: self.args[name] for name in SETTINGS if name in self.args}
        if (name := str(self.args.get("model"))) in PVT_NAMES:
            known.setdefault("backbone", name)
        if self.args:
            known.setdefault("fuse_num_heads", SETTINGS["fuse_num_heads"].default)
        if width := mlp_width(self.model):
            known.setdefault("fuse_mlp_dim", width)
        return known

    @property
    def is_published(self) -> bool:
        """Whether its training began in the published script: one of this project has the states of its processes."""
        return bool(self.from_published) or not self.processes

    @property
    def image_reading(self) -> str:
        """How images were read in its training, one of `readers.images.READINGS`."""
        reading = self.args.get("image_reading")
        return reading if reading in READINGS else RGB_ON_WHITE

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the network's architecture, as `models.create_model` takes them."""
        return {name: self.setting(name) for name in self.network.settings}

    @property
    def num_classes(self) -> int | None:
        """How many classes its head has; None if it has no head."""
        head = self.model.get("head.weight", self.model.get("counts"))
        return None if head is None or head.ndim == 0 else head.shape[0]

    def as_dict(self) -> dict[str, Any]:
        """The content of its file: plain values and tensors."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}

    def drop_tensors(self) -> None:
        """Lets go of the weights and the optimizer's state, which take as much memory as the network itself."""
        self.model, self.model_ema, self.optimizer, self.processes = {}, None, None, []


def mlp_width(state: Mapping[str, Tensor]) -> int:
    """The width of the fusion's MLP in a state dict, 0 if there is none."""
    name = "fusion_model.ffn.fc1.weight"
    weight = state.get(name, state.get(f"module.{name}"))
    return weight.shape[0] if weight is not None and weight.ndim == 2 else 0


class Check(NamedTuple):
    """What a field must be: a test of its value, and the same in words."""

    fits: Callable[[Any], bool]
    expected: str


# Fields that --finetune reads, and those that only --resume reads.
START_FIELDS = {
    "args": Check(is_dictionary, "a dictionary or Namespace of options"),
    "bert_config": Check(lambda value: value is None or is_dictionary(value), "a dictionary or None"),
    "class_names": Check(lambda value: is_list_of(value, is_line), "a list of class names"),
    "vocabulary_sha256": Check(lambda value: value is None or is_line(value), "a checksum or None"),
    "lower_case": Check(lambda value: value is None or isinstance(value, bool), "True, False or None"),
    "vocabulary": Check(lambda value: value is None or isinstance(value, str), "a text or None"),
}
RESUME_FIELDS = {
    "epoch": Check(lambda value: is_count(value, -1), "an integer from -1"),
    "step": Check(lambda value: is_count(value, 0), "an integer from 0"),
    "epoch_seconds": Check(is_number, "a number of seconds"),
    "best": Check(is_best, "a dictionary with the numbers acc1 and epoch"),
    "history": Check(lambda value: is_list_of(value, is_entry), "the entries of a log, each with an epoch"),
    "optimizer": Check(is_dictionary, "a dictionary"),
    "lr_scheduler": Check(is_dictionary, "a dictionary"),
    "scaler": Check(is_scaler, "a dictionary with a GradScaler's numbers"),
    "model_ema": Check(is_dictionary, "a dictionary of tensors"),
    "from_published": Check(lambda value: value is None or isinstance(value, bool), "True, False or None"),
    "processes": Check(lambda value: is_list_of(value, is_dictionary), "a dictionary for each process"),
}


def check_fields(content: dict[str, Any], flag: str, source: str, file_bytes: int) -> Checkpoint:
    """The fields of a checkpoint that its flag reads.

    Args:
        content: what the file holds, `model` among it.
        flag: --visfinetune reads `model` alone, --finetune what does not belong to a training, any other everything.
        source: flag and file, for messages.
        file_bytes: the size of the file.

    Raises:
        UserError: a field of another type or out of bounds, with its name.
    """
    arguments = content.get("args")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    content = content | {"args": {} if arguments is None else arguments}
    values: dict[str, Any] = {}
    read = {"--visfinetune": {}, "--finetune": START_FIELDS}.get(flag, START_FIELDS | RESUME_FIELDS)
    for name in read.keys() & content.keys():
        values[name] = plain(content[name])
        check(values[name], read[name], f"{source}: {name}")
    for name in SETTINGS.keys() & values.get("args", {}).keys():
        check(values["args"][name], SETTINGS[name], f"{source}, args: {name}")
    if values.get("bert_config") is not None:
        values["bert_config"] = check_encoder_config(values["bert_config"], f"{source}, bert_config", file_bytes)
    for name in {"model", "model_ema"} & (values.keys() | {"model"}):
        values[name] = check_state(content[name], source, file_bytes)
    asked, width = values.get("args", {}).get("fuse_mlp_dim"), mlp_width(values["model"])
    if asked and width and asked != width:
        raise UserError(f"{source}, args: fuse_mlp_dim is {asked}: expected {width}, as its weights have it")
    return Checkpoint(**values)


def check(value: Any, rule: Check | Setting, where: str) -> None:
    """Raises UserError for a value that does not fit."""
    if not rule.fits(value):
        raise UserError(f"{where}: expected {rule.expected}, found {typed(value)}; is it a checkpoint of LORA?")


def plain(value: Any) -> Any:
    """A dictionary as nothing but that: a hostile OrderedDict may hide its methods behind attributes."""
    return dict(dict.items(value)) if isinstance(value, dict) else value


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
