"""The command line: flags in groups, and the precedence defaults < config file < command line."""

import argparse
import math
import os
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from errors import UserError
from utils.messages import printable, shown

MODELS = ("lora", "lora_v")
DATASETS = ("SER", "SER_V", "FI", "EmotionROI")
MAX_CONFIG_BYTES = 2**20


class Parser(argparse.ArgumentParser):
    """Takes underscores and hyphens alike, no abbreviations, and raises UserError for a wrong flag or value."""

    def parse_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        return super().parse_args([with_hyphens(argument) for argument in args], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def with_hyphens(argument: str) -> str:
    """`--output_dir=a_b` to `--output-dir=a_b`; anything that is not a flag stays as it is."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def boolean(text: str) -> bool:
    """True or false as people write it, for flags that take a value."""
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return value


def positive_int(text: str) -> int:
    """An integer from 1."""
    return bounded(int(text), low=1)


def natural(text: str) -> int:
    """An integer from 0."""
    return bounded(int(text), low=0)


def non_negative(text: str) -> float:
    """A finite number from 0."""
    return bounded(float(text), low=0)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = non_negative(text)
    if not value:
        raise argparse.ArgumentTypeError("expected a number above 0, found 0")
    return value


def rate(text: str) -> float:
    """A probability below 1."""
    value = bounded(float(text), low=0)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, found {text}")
    return value


def bounded(value: Any, *, low: float) -> Any:
    """The value itself if it is finite and at least `low`."""
    if not math.isfinite(value) or value < low:
        raise argparse.ArgumentTypeError(f"expected a number of at least {low}, found {value}")
    return value


def build_parser(defaults: dict[str, Any]) -> Parser:
    """All flags of the published script, with its names and defaults, in groups."""
    parser = Parser(
        description="Train or evaluate LORA and LORA-V. A flag may be written with hyphens or underscores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for add_group in (
        add_run,
        add_model,
        add_weights,
        add_data,
        add_schedule,
        add_optimizer,
        add_augmentation,
        add_mixup,
    ):
        add_group(parser)
    parser.set_defaults(**defaults)
    return parser


def add_run(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--config", metavar="FILE", help="Python file with cfg = dict(...) of what differs from the defaults"
    )
    group.add_argument("--output-dir", default="", metavar="DIR", help="where checkpoints, log and results go")
    group.add_argument("--eval", action="store_true", help="evaluate the checkpoint of --resume and end")
    group.add_argument("--eval-split", choices=("val", "test"), default="test", help="what --eval evaluates")
    group.add_argument(
        "--protocol",
        choices=("published", "val"),
        default="published",
        help="published: test after each epoch, report the maximum; val: choose the epoch on val, test once",
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    group.add_argument(
        "--amp-dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="precision of the forward pass; auto: float16 with loss scaling on CUDA, float32 elsewhere",
    )
    group.add_argument("--channels-last", action="store_true", help="images and convolutions with channels last")
    group.add_argument("--seed", type=natural, default=0, help="random seed; each process adds its number")
    group.add_argument(
        "--deterministic", action="store_true", help="on a GPU too, only operations that give the same bits each time"
    )
    group.add_argument(
        "--timeout",
        type=positive_float,
        default=1800,
        metavar="SECONDS",
        help="end the run, and say where it hangs, once no batch was done for so long",
    )
    group.add_argument(
        "--dist-eval",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="processes share the evaluation; otherwise each evaluates everything",
    )
    group.add_argument("--log-every", type=positive_int, default=50, metavar="STEPS", help="steps between two lines")
    group.add_argument(
        "--world-size", type=positive_int, default=1, help="ignored: the launcher's environment tells it"
    )
    group.add_argument("--dist-url", default="env://", help="rendezvous of the processes")
    group.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)  # torch.distributed.launch without --use_env


def add_model(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=MODELS, default="lora", help="network")
    group.add_argument("--backbone", default="pvt_small", help="pvt_tiny, pvt_small, pvt_medium, pvt_large or pvt_demo")
    group.add_argument(
        "--alpha", type=int, default=8, help="patches a head selects, in squared reductions of its stage"
    )
    group.add_argument(
        "--locals", type=int, nargs=4, default=[1, 1, 1, 0], metavar="L", help="stages with local tokens"
    )
    group.add_argument(
        "--hidden-dim", type=positive_int, default=768, help="width of the fusion head, a multiple of 12"
    )
    group.add_argument("--drop", type=rate, default=0.0, metavar="P", help="dropout in the backbone")
    group.add_argument("--drop-path", type=rate, default=0.1, metavar="P", help="stochastic depth of the last block")
    group.add_argument("--fuse-dropout-rate", type=rate, default=0.1, metavar="P", help="dropout in the fusion MLP")
    group.add_argument(
        "--fuse-attention-dropout-rate", type=rate, default=0.0, metavar="P", help="dropout in the fusion attention"
    )
    group.add_argument(
        "--tunebert", type=boolean, nargs="?", const=True, default=False, metavar="BOOL", help="train the text encoder"
    )


def add_weights(parser: Parser) -> None:
    group = parser.add_argument_group("weights")
    group.add_argument("--visfinetune", default="", metavar="FILE", help="PVT checkpoint for the backbone")
    group.add_argument(
        "--bert-model",
        default="bert-base-uncased",
        metavar="NAME",
        help="text encoder: a folder (bert_config.json or config.json, weights, vocab.txt) or a hub name",
    )
    group.add_argument("--finetune", default="", metavar="FILE", help="start from a whole model; its head may differ")
    group.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="continue from, or with --eval evaluate, a checkpoint; auto: the newest of --output-dir, if there is one",
    )
    group.add_argument(
        "--checkpoint-steps", type=positive_int, metavar="N", help="write a checkpoint every N steps of an epoch too"
    )
    group.add_argument(
        "--keep", type=natural, default=0, metavar="K", help="keep the checkpoints of the last K epochs as well"
    )
    group.add_argument("--start-epoch", type=natural, default=0, help="first epoch; --resume sets it")


def add_data(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="SER", help="data set; SER_V is SER without its texts")
    group.add_argument("--data-path", default="SER_Dataset", metavar="DIR", help="its folder")
    group.add_argument(
        "--input-size", type=positive_int, default=448, metavar="PX", help="side of the square input image"
    )
    group.add_argument("--batch-size", type=positive_int, default=16, help="images a process")
    group.add_argument("--num-workers", type=natural, default=10, help="loader processes of each process")
    group.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="an image that cannot be read ends the run, or is left out, counted and listed",
    )
    group.add_argument("--steps-per-epoch", type=positive_int, metavar="N", help="end each epoch after N steps")
    group.add_argument("--pin-mem", action=argparse.BooleanOptionalAction, default=True, help="pinned memory, on CUDA")
    group.add_argument(
        "--repeated-aug", action=argparse.BooleanOptionalAction, default=True, help="each image three times an epoch"
    )


def add_schedule(parser: Parser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--epochs", type=positive_int, default=50, help="length of the training")
    group.add_argument("--sched", default="cosine", help="timm's name of the schedule")
    group.add_argument("--lr", type=non_negative, default=1e-3, help="learning rate for 512 images a step")
    group.add_argument("--unscale-lr", action="store_true", help="take --lr as it is, whatever the batch")
    group.add_argument("--lr-noise", type=float, nargs="+", help="epochs, as shares, between which the rate is noisy")
    group.add_argument("--lr-noise-pct", type=float, default=0.67, help="limit of the noise, as a share")
    group.add_argument("--lr-noise-std", type=float, default=1.0, help="deviation of the noise")
    group.add_argument("--warmup-lr", type=non_negative, default=1e-5, help="learning rate of the first epoch")
    group.add_argument("--min-lr", type=non_negative, default=1e-5, help="floor of the learning rate")
    group.add_argument("--warmup-epochs", type=natural, default=5, help="epochs of warm-up")
    group.add_argument("--cooldown-epochs", type=natural, default=10, help="epochs at the floor, if --epochs has them")
    group.add_argument("--decay-epochs", type=non_negative, default=30, help="interval of the step schedule")
    group.add_argument("--patience-epochs", type=natural, default=10, help="patience of the plateau schedule")
    group.add_argument("--decay-rate", type=non_negative, default=0.1, help="factor of step and plateau schedules")


def add_optimizer(parser: Parser) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument("--opt", default="adamw", help="timm's name of the optimizer")
    group.add_argument("--opt-eps", type=non_negative, default=1e-8, help="epsilon")
    group.add_argument("--opt-betas", type=rate, nargs=2, metavar="B", help="betas; otherwise the optimizer's own")
    group.add_argument("--momentum", type=rate, default=0.9, help="momentum of SGD")
    group.add_argument("--weight-decay", type=non_negative, default=0.05, help="weight decay, on matrices alone")
    group.add_argument(
        "--grad-accum-steps", type=positive_int, default=1, metavar="N", help="batches a step, as one large batch"
    )
    group.add_argument("--model-ema", action="store_true", help="evaluate a moving average of the weights")
    group.add_argument("--model-ema-decay", type=rate, default=0.9998, metavar="D", help="its decay a step")
    group.add_argument("--clip-grad", type=non_negative, metavar="NORM", help="largest norm of the gradient")


def add_augmentation(parser: Parser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--color-jitter", type=non_negative, default=0.1, metavar="F", help="no effect where --aa names a policy"
    )
    group.add_argument("--no-aug", action="store_true", help="train on the images as they are evaluated")
    group.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="timm's auto-augment, or none")
    group.add_argument("--smoothing", type=rate, default=0.2, help="label smoothing")
    group.add_argument("--train-interpolation", default="bicubic", help="bicubic, bilinear or random")
    group.add_argument("--reprob", type=rate, default=0.0, metavar="P", help="probability of random erasing")
    group.add_argument("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what erases")
    group.add_argument("--recount", type=positive_int, default=1, help="erased rectangles an image")


def add_mixup(parser: Parser) -> None:
    group = parser.add_argument_group("mixup")
    group.add_argument("--mixup", type=non_negative, default=0.0, metavar="ALPHA", help="Mixup, on where above 0")
    group.add_argument("--cutmix", type=non_negative, default=0.0, metavar="ALPHA", help="CutMix, on where above 0")
    group.add_argument("--cutmix-minmax", type=rate, nargs=2, metavar="R", help="CutMix's least and largest share")
    group.add_argument("--mixup-prob", type=non_negative, default=1.0, help="probability of either")
    group.add_argument(
        "--mixup-switch-prob", type=non_negative, default=0.5, help="probability of CutMix where both are on"
    )
    group.add_argument("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="how Mixup is applied")


def parse_options(argv: Sequence[str], defaults: dict[str, Any]) -> argparse.Namespace:
    """Resolves the options of a run: `defaults` of the script < config file < command line.

    Raises:
        UserError: an unknown flag or key, or a value of the wrong type; the message names it.
    """
    config = build_parser(defaults).parse_args(argv).config
    parser = build_parser(defaults)
    if config:
        parser.set_defaults(**check_config(parser, read_config(config), config))
    return parser.parse_args(argv)


def read_config(path: str) -> dict[str, Any]:
    """The options of a config file: its `cfg` dictionary or, without one, its own variables.

    The file is Python code, as in the published configs; mmcv 1.x reads it where it is installed, else mmengine.
    """
    try:
        from mmcv import Config

        settings = {}
    except ImportError:
        from mmengine.config import Config

        settings = {"lazy_import": False}  # else an import in the config makes it another kind of file
    source = f"--config {printable(path)}"
    if not os.path.isfile(path):
        raise UserError(f"{source}: no such file; the published command names configs/pvt/pvt_small.py")
    if not path.endswith(".py") or os.path.getsize(path) > MAX_CONFIG_BYTES:
        raise UserError(f"{source}: expected a Python file, *.py, of at most {MAX_CONFIG_BYTES:,} bytes")
    try:
        values = Config.fromfile(path, **settings)
        values = {key: value for key, value in values.items() if not isinstance(value, types.ModuleType)}
    except (Exception, SystemExit) as error:  # a config is a program: anything may go wrong in it
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        raise UserError(f"{source}: cannot be read as a config: {reason}") from error
    if set(values) == {"cfg"}:
        values = values["cfg"]
    if not isinstance(values, dict):
        raise UserError(f"{source}: cfg is {shown(values)}: expected a dictionary of options")
    return dict(values)


def check_config(parser: Parser, values: dict[str, Any], path: str) -> dict[str, Any]:
    """Passes each value of a config file through its flag's own type and choices."""
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    return {key: config_value(actions, key, value, printable(path)) for key, value in values.items()}


def config_value(actions: dict[str, argparse.Action], key: str, value: Any, path: str) -> Any:
    """One entry of a config file, checked as its flag would be on the command line."""
    action = actions.get(key)
    if action is None:
        found = f"unknown key {shown(key)}"
        raise UserError(f"--config {path}: {found}; its keys are the flags of --help with underscores")
    if value is None and action.default is None:
        return None
    is_switch = action.nargs == 0 or action.type is boolean
    if is_switch:
        if not isinstance(value, bool):
            raise UserError(f"--config {path}: {key} is {shown(value)}: expected True or False")
        return value
    items = list(value) if isinstance(value, list | tuple) else [value]
    takes_list = action.nargs is not None
    if takes_list != isinstance(value, list | tuple) or (isinstance(action.nargs, int) and len(items) != action.nargs):
        expected = f"a list of {action.nargs} values" if takes_list else "one value"
        raise UserError(f"--config {path}: {key} is {shown(value)}: expected {expected}")
    items = [config_item(action, item, f"--config {path}: {key} is {shown(value)}") for item in items]
    return items if takes_list else items[0]


def config_item(action: argparse.Action, item: Any, where: str) -> Any:
    """One value of an entry: a number where the flag takes a number, text where it takes text, one of its choices."""
    wants_text = action.type is None
    if isinstance(item, bool) or isinstance(item, str) != wants_text or not isinstance(item, str | int | float):
        raise UserError(f"{where}: expected {'text' if wants_text else 'a number'}, found {type(item).__name__}")
    if action.choices and item not in action.choices:
        raise UserError(f"{where}: expected one of {', '.join(map(str, action.choices))}")
    if wants_text and not item.isprintable():
        raise UserError(f"{where}: expected text on one line, without control characters")
    if wants_text:
        return item
    try:
        return action.type(repr(item))
    except (ValueError, OverflowError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{where}: {printable(error)}") from error
