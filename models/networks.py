"""One record a network: what it reads, what its checkpoint must agree with, and how it is built.

Nothing here imports PyTorch: the network's own module is loaded when it is built.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

TIMM = "timm/"  # begins the name of any network of timm
TOKENS = ("both", "global", "local", "none")  # what the fusion sees beside stage 4's class token
PVT_NAMES = ("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large", "pvt_demo")  # of the backbones in `models.pvt`
LARGEST = 10**9  # of a number in a checkpoint
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
LARGEST_SIDE = 8192  # of an image, in pixels


class Setting(NamedTuple):
    """A setting of an architecture: its default, a test of its value, and the same in words."""

    default: Any
    fits: Callable[[Any], bool]
    expected: str


def is_count(value: Any, low: int = 1, high: int = LARGEST) -> bool:
    """Whether a value is an integer from `low` to `high`; a boolean is none."""
    return type(value) is int and low <= value <= high


def is_name(value: Any) -> bool:
    """Whether a value is a short text on one line."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200


def are_locals(value: Any) -> bool:
    """Whether a value is four entries of 0 or 1, the fourth 0."""
    is_four = isinstance(value, list | tuple) and len(value) == 4
    return is_four and all(is_count(entry, 0, 1) for entry in value) and not value[3]


STATISTICS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def are_statistics(value: Any) -> bool:
    """Whether a value is None, for ImageNet's, or a dictionary of a network's input statistics."""
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != set(STATISTICS):
        return False
    triples = [value["mean"], value["std"]]
    numbers = all(isinstance(one, list | tuple) and len(one) == 3 for one in triples)
    numbers = numbers and all(type(number) in (int, float) for one in triples for number in one)
    if not numbers or type(value["crop_pct"]) not in (int, float):
        return False
    fits = all(0 <= mean <= 1 for mean in value["mean"]) and all(1e-3 <= std <= 1 for std in value["std"])
    names = value["interpolation"] in INTERPOLATIONS and value["crop_mode"] in ("center", "squash", "border")
    return fits and names and 0.1 <= value["crop_pct"] <= 2  # above 1 the image gets a border


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "backbone": Setting("pvt_small", is_name, "a name"),
        "alpha": Setting(8, is_count, "a positive integer"),
        "locals": Setting([1, 1, 1, 0], are_locals, "four entries of 0 or 1, the fourth 0"),
        "hidden_dim": Setting(768, is_count, "a positive integer"),
        "fuse_mlp_dim": Setting(3072, is_count, "a positive integer"),
        "fuse_num_heads": Setting(12, is_count, "a positive integer"),
        "tokens": Setting("both", lambda value: value in TOKENS, f"one of {', '.join(TOKENS)}"),
        "texts": Setting(True, lambda value: isinstance(value, bool), "True or False"),
        "input_statistics": Setting(None, are_statistics, f"None or {', '.join(STATISTICS)} as timm has them"),
        "input_size": Setting(448, lambda value: is_count(value, 1, LARGEST_SIDE), f"pixels, at most {LARGEST_SIDE}"),
    }
)
BACKBONE_RATES = ("drop", "drop_path")
FUSION_RATES = ("fuse_dropout_rate", "fuse_attention_dropout_rate")
LORA_SETTINGS = ("backbone", "alpha", "locals", "hidden_dim", "fuse_mlp_dim", "fuse_num_heads", "tokens")


@dataclass(frozen=True)
class Network:
    """What the project knows of a network.

    Attributes:
        name: as `--model` has it.
        title: as documents have it.
        reads: what it is called with, in order: "image", "text", "topic".
        settings: the names in `SETTINGS` that a checkpoint of it fits or not.
        rates: further keyword arguments of `create_model`, which its weights do not depend on.
        checkpoint: how the names of its checkpoints begin.
        command: the script that trains it.
        builder: `module:function` of its constructor, loaded when it is built.
        is_pyramid: whether it has the PVT of this project, with its rules on image sizes.
        selects_patches: whether it has local re-attention.
        learns: whether it is trained by steps of an optimizer.
        keeps_best: whether it was published with the weights of the best epoch on test, the later of equal ones.
    """

    name: str
    title: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    rates: tuple[str, ...]
    checkpoint: str
    command: str
    builder: str
    is_pyramid: bool = True
    selects_patches: bool = True
    learns: bool = True
    keeps_best: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether it has a text encoder."""
        return "text" in self.reads

    @property
    def reads_topics(self) -> bool:
        """Whether its logits depend on which stickers of a batch have the same topic."""
        return "topic" in self.reads

    @property
    def reads_images(self) -> bool:
        """Whether it looks at the image."""
        return "image" in self.reads

    def build(self, **settings: Any) -> Any:
        """Builds the network; see `models.create_model`."""
        module, _, function = self.builder.partition(":")
        return getattr(import_module(module), function)(**settings)


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        network.name: network
        for network in (
            Network(
                name="lora",
                title="LORA",
                reads=("image", "text"),
                settings=LORA_SETTINGS,
                rates=(*BACKBONE_RATES, *FUSION_RATES, "tunebert"),
                checkpoint="checkpoint",
                command="main.py",
                builder="models.lora:build_lora",
            ),
            Network(
                name="lora_v",
                title="LORA-V",
                reads=("image",),
                settings=LORA_SETTINGS,
                rates=(*BACKBONE_RATES, *FUSION_RATES),
                checkpoint="checkpoint_v",
                command="main_V.py",
                builder="models.lora:build_lora_v",
            ),
            Network(
                name="tgca_pvt",
                title="TGCA-PVT",
                reads=("image", "text", "topic"),
                settings=LORA_SETTINGS,
                rates=(*BACKBONE_RATES, *FUSION_RATES, "tunebert"),
                checkpoint="checkpoint_tgca",
                command="main.py --model tgca_pvt",
                builder="models.tgca:build_tgca_pvt",
                keeps_best=True,
            ),
            Network(
                name="tgca_pvt_v",
                title="TGCA-PVT-V",
                reads=("image", "topic"),
                settings=LORA_SETTINGS,
                rates=(*BACKBONE_RATES, *FUSION_RATES),
                checkpoint="checkpoint_tgca_v",
                command="main_V.py --model tgca_pvt_v",
                builder="models.tgca:build_tgca_pvt_v",
            ),
            Network(
                name="tgca_pvt_lora_locals",
                title="TGCA-PVT with LORA's local tokens",
                reads=("image", "text", "topic"),
                settings=LORA_SETTINGS,
                rates=(*BACKBONE_RATES, *FUSION_RATES, "tunebert"),
                checkpoint="checkpoint_tgca_lora_locals",
                command="main.py --model tgca_pvt_lora_locals",
                builder="models.tgca:build_with_plain_locals",
                keeps_best=True,
            ),
            Network(
                name="pvt",
                title="PVT",
                reads=("image",),
                settings=("backbone",),
                rates=BACKBONE_RATES,
                checkpoint="checkpoint_pvt",
                command="main_V.py --model pvt",
                builder="models.pvt:build_pvt",
                selects_patches=False,
            ),
            Network(
                name="bert",
                title="BERT",
                reads=("text",),
                settings=(),
                rates=("tunebert",),
                checkpoint="checkpoint_bert",
                command="main.py --model bert",
                builder="models.baselines:build_bert",
                is_pyramid=False,
                selects_patches=False,
            ),
            Network(
                name="majority",
                title="majority class",
                reads=(),
                settings=(),
                rates=(),
                checkpoint="checkpoint_majority",
                command="main_V.py --model majority",
                builder="models.baselines:build_majority",
                is_pyramid=False,
                selects_patches=False,
                learns=False,
            ),
        )
    }
)


def get_network(name: str, *, texts: bool = False) -> Network:
    """The record of a network.

    Args:
        name: one of `NETWORKS`, or "timm/" and a name of timm.
        texts: whether a network of timm is joined with the text encoder.

    Raises:
        ValueError: an unknown name.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if not name.startswith(TIMM) or name == TIMM:
        raise ValueError(f"expected {', '.join(NETWORKS)} or {TIMM}NAME, found {name!r}")
    return Network(
        name=name,
        title=name,
        reads=("image", "text") if texts else ("image",),
        settings=("texts", "input_size"),
        rates=("tunebert",) if texts else (),
        checkpoint="checkpoint_" + re.sub(r"[^\w.-]", "_", name),
        command=f"{'main.py' if texts else 'main_V.py'} --model {name}",
        builder="models.baselines:build_timm",
        is_pyramid=False,
        selects_patches=False,
    )


def names_where(fits: Callable[[Network], bool]) -> str:
    """The networks for which something holds, for messages: "lora, lora_v or pvt"."""
    *others, last = [name for name, network in NETWORKS.items() if fits(network)]
    return f"{', '.join(others)} or {last}" if others else last


def create_model(name: str, **settings: Any) -> Any:
    """Builds a network with its initial values; no file and no network connection is touched, but for timm's weights.

    Args:
        name: "lora", called as `model(images, word_ids, word_mask)`; "lora_v" and "pvt", called as `model(images)`;
            "tgca_pvt" and "tgca_pvt_v", called as these with topics (B,) after; or one of `models.baselines`.
        settings: `num_classes` (7), and what the network's builder takes: see `models.lora.build_parts`.

    Raises:
        ValueError: an unknown name, or a value that does not fit; the message begins with the parameter's name.
    """
    network = get_network(name, texts=settings.get("texts", False))
    for key, value in settings.items():
        if key in SETTINGS and not SETTINGS[key].fits(value):
            raise ValueError(f"{key} is {value!r}: expected {SETTINGS[key].expected}")
    if name.startswith(TIMM):
        settings["name"] = name.removeprefix(TIMM)
    return network.build(**settings)
