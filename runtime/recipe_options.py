"""The flags of the training recipe: schedule, optimizer, augmentation, Mixup."""

import argparse

from runtime.option_types import Parser, class_weight, concentration, natural, non_negative, positive_int, rate, share


def add_schedule(parser: Parser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--epochs", type=positive_int, default=50, help="length of the training")
    group.add_argument("--sched", default="cosine", help="timm's name of the schedule")
    group.add_argument("--lr", type=non_negative, default=1e-3, help="learning rate for 512 images a step")
    group.add_argument("--unscale-lr", action="store_true", help="take --lr as it is, whatever the batch")
    group.add_argument(
        "--lr-noise", type=non_negative, nargs="+", help="from and to which share of the epochs the rate is noisy"
    )
    group.add_argument("--lr-noise-pct", type=non_negative, default=0.67, help="limit of the noise, as a share")
    group.add_argument("--lr-noise-std", type=non_negative, default=1.0, help="deviation of the noise")
    group.add_argument("--warmup-lr", type=non_negative, default=1e-5, help="learning rate of the first epoch")
    group.add_argument("--min-lr", type=non_negative, default=1e-5, help="floor of the learning rate")
    group.add_argument("--warmup-epochs", type=natural, default=5, help="epochs of warm-up")
    group.add_argument("--cooldown-epochs", type=natural, default=10, help="epochs at the floor, if --epochs has them")
    group.add_argument("--decay-epochs", type=non_negative, default=30, help="interval of the step schedule")
    group.add_argument("--patience-epochs", type=natural, default=10, help="patience of the plateau schedule")
    group.add_argument(
        "--decay-rate", "--dr", type=non_negative, default=0.1, help="factor of step and plateau schedules"
    )


def add_optimizer(parser: Parser) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument("--opt", default="adamw", help="timm's name of the optimizer")
    group.add_argument("--opt-eps", type=non_negative, default=1e-8, help="epsilon")
    group.add_argument("--opt-betas", type=rate, nargs="+", metavar="B", help="betas; otherwise the optimizer's own")
    group.add_argument("--momentum", type=rate, default=0.9, help="momentum of SGD")
    group.add_argument("--weight-decay", type=non_negative, default=0.05, help="weight decay, on matrices alone")
    group.add_argument(
        "--layer-decay", type=share, metavar="F", help="factor of the learning rate from a layer to the one before it"
    )
    group.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        help="the optimizer's fused form; by default on CUDA, if it has one",
    )
    group.add_argument(
        "--grad-accum-steps", type=positive_int, default=1, metavar="N", help="batches a step, as one large batch"
    )
    group.add_argument("--model-ema", action="store_true", help="evaluate a moving average of the weights")
    group.add_argument("--model-ema-decay", type=rate, default=0.9998, metavar="D", help="its decay a step")
    group.add_argument("--clip-grad", type=non_negative, metavar="NORM", help="largest norm of the gradient")


def add_augmentation(parser: Parser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--color-jitter", type=non_negative, default=0.1, metavar="F", help="no effect if --aa names a policy"
    )
    group.add_argument("--no-aug", action="store_true", help="train on the images as they are evaluated")
    group.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="timm's auto-augment, or none")
    group.add_argument("--smoothing", type=rate, default=0.2, help="label smoothing")
    group.add_argument(
        "--scale", type=share, nargs=2, default=[0.08, 1.0], metavar="S", help="least and largest crop, of the area"
    )
    group.add_argument("--train-interpolation", default="bicubic", help="bicubic, bilinear or random")
    group.add_argument("--reprob", type=rate, default=0.0, metavar="P", help="probability of random erasing")
    group.add_argument("--remode", choices=("const", "rand", "pixel"), default="pixel", help="what erases")
    group.add_argument("--recount", type=positive_int, default=1, help="erased rectangles an image")


def add_mixup(parser: Parser) -> None:
    group = parser.add_argument_group("mixup")
    group.add_argument("--mixup", type=concentration, default=0.0, metavar="ALPHA", help="Mixup, on above 0")
    group.add_argument("--cutmix", type=concentration, default=0.0, metavar="ALPHA", help="CutMix, on above 0")
    group.add_argument("--cutmix-minmax", type=rate, nargs=2, metavar="R", help="CutMix's least and largest share")
    group.add_argument("--mixup-prob", type=non_negative, default=1.0, help="probability of either")
    group.add_argument(
        "--mixup-switch-prob", type=non_negative, default=0.5, help="probability of CutMix if both are on"
    )
    group.add_argument("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="how Mixup is applied")


def add_targets(parser: Parser) -> None:
    group = parser.add_argument_group("rare classes and several annotators")
    group.add_argument(
        "--class-weights",
        type=class_weight,
        nargs="+",
        default=["none"],
        metavar="W",
        help="weights of the classes in the loss: none; balanced, by the inverse of their counts in train; effective, "
        "by the inverse of their effective number of samples, see --beta; or a number for each class",
    )
    group.add_argument("--beta", type=rate, default=0.9999, help="of --class-weights effective")
    group.add_argument(
        "--sampler",
        choices=("uniform", "balanced"),
        default="uniform",
        help="balanced: an epoch draws from each class as often as from any other",
    )
    group.add_argument(
        "--labels",
        choices=("anno", "distribution"),
        default="anno",
        help="train on the label, or on the shares of the annotators' votes, with which evaluations then compare too",
    )
