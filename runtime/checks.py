"""Which options go together; what does not is an error before anything is read or written."""

from argparse import Namespace

from models import SETTINGS, TIMM, Network, names_where
from models.vision import check_image_size
from readers.data_sets import DATA_SETS
from utils import UserError, naming_flags, print0


def check_options(options: Namespace, network: Network) -> None:
    """Raises UserError for options that do not go together, before anything is read or written."""
    if network.is_pyramid:
        with naming_flags(SETTINGS):
            check_image_size(options.input_size, options.input_size, options.alpha if network.selects_patches else 1)
    check_model(options, network)
    if options.eval and not (options.resume or options.finetune):
        raise UserError("--eval evaluates a checkpoint: name it with --resume or --finetune")
    if options.eval and options.finetune and options.model_ema:
        raise UserError("--model-ema: --finetune reads no moving average: name the checkpoint with --resume")
    if options.resume not in ("", "auto") and options.finetune:
        raise UserError("--resume continues a run and --finetune starts one: give one of them")
    if options.resume == "auto" and not options.output_dir:
        raise UserError("--resume auto looks for a checkpoint in --output-dir: name it")
    if options.resume == "auto" and options.start_epoch:
        raise UserError("--start-epoch goes with a fresh run: --resume auto knows the epoch itself")
    if not options.eval and not options.output_dir:
        check_unsaved(options)
    check_targets(options)
    if options.scale[0] > options.scale[1]:
        raise UserError(
            f"--scale {options.scale[0]:g} {options.scale[1]:g}: expected the least crop before the largest"
        )
    if (options.mixup or options.cutmix or options.cutmix_minmax) and options.batch_size % 2:
        raise UserError(f"--batch-size {options.batch_size} is odd: --mixup and --cutmix take images in pairs")


def check_targets(options: Namespace) -> None:
    """Raises UserError for weights, sampler or labels that do not go together or with the data set."""
    weights = options.class_weights
    if len(weights) > 1 and not all(isinstance(weight, float) for weight in weights):
        found = " ".join(map(str, weights))
        raise UserError(f"--class-weights {found}: expected one word, or a number for each class: give one of them")
    if weights != ["none"] and options.sampler == "balanced":
        raise UserError("--class-weights and --sampler balanced both make up for rare classes: give one of them")
    if options.labels == "distribution" and not DATA_SETS[options.dataset].has_votes:
        known = ", ".join(name for name, one in DATA_SETS.items() if one.has_votes)
        raise UserError(
            f"--labels distribution: expected a data set with the annotators' votes ({known}), found "
            f"{options.dataset}: leave the flag out"
        )


def check_unsaved(options: Namespace) -> None:
    """Raises UserError for a training without --output-dir that has to write there."""
    writing = {
        "--protocol val": options.protocol == "val",
        "--checkpoint-steps": options.checkpoint_steps,
        "--keep": options.keep,
        "--profile": options.profile,
        "--tensorboard": options.tensorboard,
        "--wandb": options.wandb,
    }
    for flag, is_on in writing.items():
        if is_on:
            raise UserError(f"--output-dir is missing, into which {flag} writes: name a folder")
    print0("without --output-dir nothing is saved: no checkpoint, no log, no figures")


def check_model(options: Namespace, network: Network) -> None:
    """Raises UserError for options that do not go with the model."""
    is_timm = network.name.startswith(TIMM)
    if network.reads_text and not DATA_SETS[options.dataset].has_texts:
        raise UserError(
            f"--model {options.model} reads texts, which --dataset {options.dataset} does not have: use main_V.py, or "
            f"one of {', '.join(name for name, one in DATA_SETS.items() if one.has_texts)}"
        )
    if options.pretrained and not is_timm:
        raise UserError(f"--pretrained is for --model {TIMM}NAME: name a file with --visfinetune for {options.model}")
    if options.pretrained and options.visfinetune:
        raise UserError("--pretrained and --visfinetune both name weights: give one of them")
    if options.visfinetune and not network.reads_images:
        raise UserError(f"--visfinetune: --model {options.model} sees no image: leave the flag out")
    if options.layer_decay and not network.is_pyramid:
        raise UserError(f"--layer-decay is for networks of PVT: leave it out with --model {options.model}")


def resolve_topics(options: Namespace, network: Network) -> None:
    """Puts the defaults of a network that reads topics into the options; for another, these flags are an error."""
    for name, default in (("context", "batch"), ("topics_as", "encoded")):
        if getattr(options, name) is None:
            setattr(options, name, default if network.reads_topics else None)
        elif not network.reads_topics:
            flag = f"--{name.replace('_', '-')} {getattr(options, name)}"
            expected = f"--model {names_where(lambda one: one.reads_topics)}"
            raise UserError(f"{flag}: expected {expected}, found {options.model}: leave it out")
