"""The command line: flags in groups, and the precedence defaults < config file < command line."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models import TOKENS
from readers.data_sets import DATA_SETS
from readers.images import READINGS
from runtime.config_file import check_config, read_config
from runtime.option_types import (
    ModelName,
    Parser,
    boolean,
    device_name,
    model_name,
    natural,
    positive_float,
    positive_int,
    rate,
    with_hyphens,
)
from runtime.recipe_options import add_augmentation, add_mixup, add_optimizer, add_schedule, add_targets
from utils import UserError

WITHOUT_EFFECT = "taken, without effect, as published"
NO_EFFECT = ("resplit", "use_mcloader", "inat_category")
METRICS = {"acc1": "accuracy", "macro_f1": "macro F1"}  # by which the best epoch is chosen, and as documents have them
INAT_CATEGORIES = ("kingdom", "phylum", "class", "order", "supercategory", "family", "genus", "name")


def build_parser(defaults: dict[str, Any]) -> Parser:
    """All flags of the published script, with its names and defaults, in groups."""
    parser = Parser(
        description="Train or evaluate LORA and LORA-V. A flag may be written with hyphens or underscores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for add_group in (
        add_run,
        add_evaluation,
        add_computing,
        add_model,
        add_weights,
        add_data,
        add_schedule,
        add_optimizer,
        add_augmentation,
        add_mixup,
        add_targets,
    ):
        add_group(parser)
    parser.set_defaults(input_statistics=None, **defaults)  # no flag: `build_run` sets it, and checkpoints keep it
    return parser


def add_run(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--config", metavar="FILE", help="Python file with cfg = dict(...) of what differs from the defaults"
    )
    group.add_argument(
        "--output-dir", default="", metavar="DIR", help="where checkpoints, log and results go; without it, nowhere"
    )
    group.add_argument("--seed", type=natural, default=42, help="random seed; each process adds its number")
    group.add_argument(
        "--deterministic", action="store_true", help="on a GPU too, only operations that give the same bits each time"
    )
    group.add_argument(
        "--timeout",
        type=positive_float,
        default=1800,
        metavar="SECONDS",
        help="end the run, and say where it hangs, if no batch is done for so long",
    )
    group.add_argument(
        "--figures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw curves and confusion matrix at the end of a training",
    )
    group.add_argument("--tensorboard", action="store_true", help="write event files into --output-dir as well")
    group.add_argument("--wandb", action="store_true", help="tell Weights & Biases as well, if it is installed")
    group.add_argument("--log-every", type=positive_int, default=50, metavar="STEPS", help="steps between two lines")
    group.add_argument(
        "--world-size", type=positive_int, default=1, help="ignored: the launcher's environment tells it"
    )
    group.add_argument("--dist-url", default="env://", help="rendezvous of the processes")
    group.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)  # torch.distributed.launch without --use_env


def add_evaluation(parser: Parser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval", action="store_true", help="evaluate --resume or --finetune and end")
    group.add_argument("--eval-split", choices=("val", "test"), default="test", help="what --eval evaluates")
    group.add_argument(
        "--without-near-duplicates",
        default="",
        metavar="LIST",
        help="also the figures without the images that have a twin in train: the --json file of "
        "tools/check_dataset.py --near-duplicates N",
    )
    group.add_argument(
        "--protocol",
        choices=("published", "val"),
        default="published",
        help="published: test after each epoch, report the maximum; val: choose the epoch on val, test once",
    )
    group.add_argument(
        "--best-metric",
        choices=tuple(METRICS),
        default="acc1",
        help="by which the best epoch is chosen: top-1 accuracy, or the mean F1 of the classes",
    )
    group.add_argument(
        "--early-stop", type=positive_int, metavar="N", help="end the training after N epochs without a better one"
    )
    group.add_argument(
        "--context",
        choices=("batch", "alone"),
        help="what an evaluation of tgca_pvt shows a sticker beside itself: batch, the others of its topic among "
        "int(1.5 x batch size) consecutive ones, as published and the default; alone, none",
    )
    group.add_argument(
        "--dist-eval",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="processes share the evaluation; otherwise each evaluates everything",
    )


def add_computing(parser: Parser) -> None:
    group = parser.add_argument_group("computing")
    group.add_argument(
        "--device", type=device_name, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:NUMBER or mps"
    )
    group.add_argument(
        "--amp-dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="precision of the forward pass; auto: float16 with loss scaling on CUDA, float32 elsewhere",
    )
    group.add_argument(
        "--fp32-resume", action="store_true", help="train the first two epochs after the start in float32"
    )
    group.add_argument("--channels-last", action="store_true", help="images and convolutions with channels last")
    group.add_argument(
        "--compile", action="store_true", help="compile the vision model; the first steps take minutes, the rest less"
    )
    group.add_argument(
        "--grad-checkpointing", action="store_true", help="compute the backbone's blocks twice to save memory"
    )
    group.add_argument(
        "--profile", type=positive_int, metavar="STEPS", help="trace STEPS steps of training into --output-dir"
    )


def add_model(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=model_name,
        action=ModelName,
        default="lora",
        metavar="NAME",
        help="lora, lora_v, tgca_pvt, tgca_pvt_v, or to compare with: tgca_pvt_lora_locals, its ablation; pvt, the "
        "backbone as a classifier; timm/NAME, any network of timm; bert, the text alone; majority, the most frequent "
        "class; as published, pvt_small ... means --backbone",
    )
    group.add_argument(
        "--texts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="timm/NAME is joined with the text encoder; main_V.py leaves it out",
    )
    group.add_argument("--backbone", default="pvt_small", help="pvt_tiny, pvt_small, pvt_medium, pvt_large or pvt_demo")
    group.add_argument(
        "--alpha", type=int, default=8, help="patches a head selects, in squared reductions of its stage"
    )
    group.add_argument(
        "--locals", type=int, nargs=4, default=[1, 1, 1, 0], metavar="L", help="stages with local tokens"
    )
    group.add_argument(
        "--tokens", choices=TOKENS, default="both", help="what the fusion sees beside stage 4's class token"
    )
    group.add_argument(
        "--hidden-dim", type=positive_int, default=768, help="width of the fusion head, a multiple of its heads"
    )
    group.add_argument("--fuse-mlp-dim", type=positive_int, default=3072, help="width of the fusion MLP")
    group.add_argument("--fuse-num-heads", type=positive_int, default=12, help="heads of the fusion attention")
    group.add_argument(
        "--bert-dim", type=positive_int, metavar="WIDTH", help="the text encoder's width, which it must have if given"
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
    group.add_argument("--visfinetune", default="", metavar="FILE", help="weights for the backbone: PVT's, or timm's")
    group.add_argument("--pretrained", action="store_true", help="timm/NAME starts from its weights on timm's hub")
    group.add_argument(
        "--bert-model",
        default="bert-base-uncased",
        metavar="NAME",
        help="text encoder: a hub name, or a folder or .tar.gz (bert_config.json or config.json, weights, vocab.txt)",
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
    group.add_argument(
        "--dataset",
        choices=tuple(DATA_SETS),
        default="SER",
        help="data set; SER_V is SER without its texts, folder is {train,val,test}/<class>/<image>, csv a table with "
        "the columns path, label, split and, if there are any, text",
    )
    group.add_argument("--data-path", default="SER_Dataset", metavar="DIR", help="its folder; csv: its file")
    group.add_argument(
        "--annotations",
        default="",
        metavar="NAME",
        help="SER30K's lists of another folder in Annotations, such as tools/make_splits.py writes",
    )
    group.add_argument(
        "--input-size", type=positive_int, default=448, metavar="PX", help="side of the square input image"
    )
    group.add_argument("--batch-size", type=positive_int, default=32, help="images a process")
    group.add_argument("--num-workers", type=natural, default=10, help="loader processes of each process")
    group.add_argument(
        "--image-reading",
        choices=READINGS,
        help="rgb-on-white, the default: transparency on white; published: as the published code reads, which makes "
        "noise of transparency and CMYK; of a checkpoint of --resume, otherwise as it was trained",
    )
    group.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="an image that cannot be read ends the run, or is left out (replaced in training), counted and listed",
    )
    group.add_argument(
        "--cache-images", action="store_true", help="keep the decoded images of a small data set in memory"
    )
    group.add_argument(
        "--jpeg-draft",
        action="store_true",
        help="training decodes large JPEGs at reduced scale: faster, other pixels",
    )
    group.add_argument(
        "--prefetch-factor", type=positive_int, default=2, metavar="N", help="batches that a worker reads ahead"
    )
    group.add_argument(
        "--topics-as",
        choices=("encoded", "exact"),
        help="which topics are one for tgca_pvt: encoded, of equal word ids, as published and the default; exact, of "
        "equal names",
    )
    group.add_argument("--steps-per-epoch", type=positive_int, metavar="N", help="end each epoch after N steps")
    group.add_argument("--pin-mem", action=argparse.BooleanOptionalAction, default=True, help="pinned memory, on CUDA")
    group.add_argument(
        "--repeated-aug", action=argparse.BooleanOptionalAction, default=True, help="each image three times an epoch"
    )
    group.add_argument("--resplit", action="store_true", help=WITHOUT_EFFECT)
    group.add_argument("--use-mcloader", action="store_true", help=WITHOUT_EFFECT)
    group.add_argument("--inat-category", choices=INAT_CATEGORIES, default="name", metavar="NAME", help=WITHOUT_EFFECT)


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


def given_without_effect(argv: Sequence[str], options: argparse.Namespace) -> list[str]:
    """The flags that change nothing and are on the command line, or in the config file with another value."""
    words = {with_hyphens(word).partition("=")[0] for word in argv}
    defaults = build_parser({})
    flags = {name: f"--{name.replace('_', '-')}" for name in NO_EFFECT}
    return [
        flag for name, flag in flags.items() if flag in words or getattr(options, name) != defaults.get_default(name)
    ]


def check_command_line(argv: Sequence[str], defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Ends the program for --help, and with a line and exit code 2 for a mistake in the command line."""
    try:
        parse_options(argv, dict(defaults))
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
