"""What a run starts from: a checkpoint, pretrained parts, or nothing; and the model with those weights."""

import argparse
import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import SETTINGS, TIMM, create_model, get_network
from models.pvt import backbone_of, interpolate_position_embedding
from readers.checkpoint import load_state, newest_checkpoint, read_checkpoint
from readers.text_encoder import load_text_encoder
from readers.tokenizer import Tokenizer
from utils import Processes, UserError, failing_together, gather, print0

CHECKPOINT_STEMS = {"lora": "checkpoint", "lora_v": "checkpoint_v", "pvt": "checkpoint_pvt"}

COMMANDS = {"lora": "main.py", "lora_v": "main_V.py", "pvt": "main_V.py --model pvt"}  # of others: --model

ARCHITECTURE_OPTIONS = ("backbone", "alpha", "locals", "hidden_dim", "tokens")  # which a checkpoint fits or not

DEFAULT_VOCABULARY = Path(__file__).resolve().parents[1] / "weights" / "vocab.txt"

BERT_VOCABULARY = 30522  # of bert-base-uncased, which published checkpoints have


def resolve_resume(options: argparse.Namespace, processes: Processes) -> None:
    """Puts the file that `--resume auto` stands for into the options, '' where there is none yet.

    Process 0 looks, and all take what it found: the output folder is shared, but a look may come too early.
    """
    if options.resume != "auto":
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and not options.resume:
            print0("warning: the launcher has started this run again, and without --resume auto it loses what was done")
        return
    found = None
    with failing_together():
        if processes.is_main:
            found = newest_checkpoint(Path(options.output_dir), checkpoint_stem(options.model))
    options.resume = str(gather(found)[0] or "")
    if options.eval and not options.resume:
        raise UserError(f"--resume auto: no checkpoint in --output-dir {options.output_dir}")
    if options.resume and options.finetune:
        print0(f"--finetune {options.finetune} is not read: {options.resume} has the weights")
        options.finetune = ""
    if not options.resume:
        print0(f"--resume auto: no checkpoint in {options.output_dir} yet, the run starts afresh")


def checkpoint_stem(model: str) -> str:
    """How the names of a model's checkpoints begin."""
    return CHECKPOINT_STEMS.get(model) or "checkpoint_" + re.sub(r"[^\w.-]", "_", model)


def checkpoint_name(options: argparse.Namespace, which: str = "") -> str:
    """`checkpoint.pth`, `checkpoint_v.pth` or `checkpoint_<model>.pth`, `_best` before the dot for the best epoch."""
    return f"{checkpoint_stem(options.model)}{which}.pth"


def read_start(options: argparse.Namespace) -> dict[str, Any]:
    """What the run starts from: a checkpoint (--resume, --finetune), or a pretrained text encoder, or nothing.

    `bert_config` and `tokenizer` are there for a model that reads texts, `model` where there is a checkpoint,
    `text_state` otherwise.
    """
    flag = "--resume" if options.resume else "--finetune"
    path = options.resume or options.finetune
    if not path:
        if not reads_texts(options):
            return {}
        encoder = load_text_encoder(options.bert_model)
        tokenizer = Tokenizer(encoder.vocabulary)
        check_vocabulary(tokenizer, encoder.config, f"--bert-model {options.bert_model}")
        return {"bert_config": encoder.config, "text_state": encoder.state, "tokenizer": tokenizer}
    start = read_checkpoint(path, flag)
    found = model_of(start)
    if found != options.model:
        use = COMMANDS.get(found, f"--model {found}")
        raise UserError(f"{flag} {path}: expected a checkpoint of {options.model}, found one of {found}: use {use}")
    for name in architecture_options(found):
        asked, trained = getattr(options, name), start["args"].get(name, getattr(options, name))
        if asked != trained:
            raise UserError(f"{flag} {path}: trained with {flag_value(name, trained)}, found {flag_value(name, asked)}")
    if reads_texts(options):
        start["tokenizer"] = find_tokenizer(options, start.get("vocabulary_sha256"))
        check_vocabulary(start["tokenizer"], start.get("bert_config"), f"{flag} {path}")
    return start


def reads_texts(options: argparse.Namespace) -> bool:
    """Whether the run's model has a text encoder."""
    return options.model in ("lora", "bert") or (options.texts and options.model.startswith(TIMM))


def architecture_options(model: str) -> Sequence[str]:
    """The options that a checkpoint of a model fits or not."""
    if model.startswith(TIMM):
        return ("texts", "input_size")
    return {"pvt": ("backbone",), "bert": (), "majority": ()}.get(model, ARCHITECTURE_OPTIONS)


def model_of(checkpoint: dict[str, Any]) -> str:
    """Which network a checkpoint is of: a baseline as its `args` say, else as the names of its weights do."""
    named = str(checkpoint.get("args", {}).get("model", ""))
    with contextlib.suppress(ValueError):
        if not get_network(named).is_pyramid:
            return named
    parts = {name.partition(".")[0] for name in checkpoint["model"]}
    return "lora" if "text_model" in parts else "pvt" if "patch_embed1" in parts else "lora_v"


def check_vocabulary(tokenizer: Tokenizer, bert_config: dict[str, Any] | None, source: str) -> None:
    """Raises UserError for a vocabulary with pieces that the text encoder has no embedding for."""
    known = (bert_config or {}).get("vocab_size", BERT_VOCABULARY)
    if tokenizer.vocab_size > known:
        raise UserError(
            f"{source}: its text encoder knows {known:,} word pieces, the vocabulary has {tokenizer.vocab_size:,}: "
            "name the encoder's own with --bert-model"
        )


def flag_value(name: str, value: Any) -> str:
    """An option as one types it."""
    return f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def find_tokenizer(options: argparse.Namespace, sha256: str | None) -> Tokenizer:
    """The tokenizer of a checkpoint: of `weights/vocab.txt`, else of the vocabulary in the folder of --bert-model.

    Args:
        sha256: the vocabulary's checksum; None for a published checkpoint, which has BERT's own.
    """
    for path in (DEFAULT_VOCABULARY, Path(options.bert_model) / "vocab.txt"):
        if path.is_file():
            tokenizer = Tokenizer(path)
            if sha256 in (None, tokenizer.sha256):
                return tokenizer
    raise UserError(
        f"--resume: the checkpoint's vocabulary is neither {DEFAULT_VOCABULARY} nor in --bert-model "
        f"{options.bert_model}: name the folder of its text encoder with --bert-model"
    )


def check_classes(options: argparse.Namespace, start: dict[str, Any], class_names: Sequence[str]) -> None:
    """Raises UserError where a run goes on with, or evaluates, a model of other classes than the data set's."""
    trained = start.get("class_names")
    if options.resume and trained and list(trained) != list(class_names):
        raise UserError(
            f"--resume {options.resume}: expected a model of the classes {', '.join(class_names)}, found one of "
            f"{', '.join(trained)}: check --dataset, or start from its weights with --finetune"
        )


def build_model(
    options: argparse.Namespace, start: dict[str, Any], num_classes: int, say: Callable[[str], None] = print0
) -> nn.Module:
    """The network with the weights that it starts from; `say` is told what was loaded."""
    network = get_network(options.model, texts=options.texts)
    settings = {name: getattr(options, name) for name in (*network.settings, *network.rates)}
    if network.reads_text:
        settings["bert"] = start.get("bert_config")
    if options.model.startswith(TIMM) and not start.get("model"):
        settings["pretrained"] = options.visfinetune or options.pretrained
    with naming_flags(**{"pretrained": "--visfinetune"} if options.visfinetune else {}):
        model = create_model(options.model, num_classes=num_classes, **settings)
    if "text_state" in start:
        source = f"--bert-model {options.bert_model}"
        say(load_state(model.text_model, start["text_state"], source, may_lack=is_pooler))
    if options.visfinetune and not start.get("model") and network.is_pyramid:
        source = f"--visfinetune {options.visfinetune}"
        state = read_checkpoint(options.visfinetune, "--visfinetune")["model"]
        state, interpolated = fit_position_embeddings(state, backbone_of(model).state_dict())
        account = load_state(backbone_of(model), state, source, may_lack=is_new, may_leave=is_head)
        say(account + interpolated)
    elif options.visfinetune and start.get("model"):
        say(f"--visfinetune {options.visfinetune} is not read: the checkpoint has the backbone's weights")
    if options.resume:
        weights = "model_ema" if options.eval and options.model_ema else "model"
        if weights not in start:
            raise UserError(f"--model-ema: --resume {options.resume} has no moving average: leave the flag out")
        say(load_state(model, start[weights], f"--resume {options.resume}"))
    elif options.finetune:
        say(load_state(model, start["model"], f"--finetune {options.finetune}", may_leave=is_head))
    return model


FLAGS = {"bert": "--bert-model", "name": "--model", "pretrained": "--pretrained"}  # of parameters beside SETTINGS


@contextlib.contextmanager
def naming_flags(**flags: str) -> Iterator[None]:
    """Turns the ValueError of a network, which begins with a parameter's name, into a UserError with its flag.

    Args:
        flags: the flag of a parameter, if it differs from the usual one.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        name = re.match(r"\w*", str(error))[0]
        flags = {name: f"--{name.replace('_', '-')}" for name in SETTINGS} | FLAGS | flags
        raise UserError(flags.get(name, name) + str(error)[len(name) :]) from error


def is_pooler(name: str) -> bool:
    """BERT's pooler, whose output is not used."""
    return name.startswith("pooler.")


def is_new(name: str) -> bool:
    """What is added to the backbone: local re-attention's parameters, or the classifier of --model pvt."""
    return is_head(name) or name.startswith(("cls_token1", "cls_token2", "cls_token3", "local_proj", "global_proj"))


def is_head(name: str) -> bool:
    """The classifier."""
    return name.startswith("head.")


def count_parameters(model: nn.Module) -> int:
    """How many parameters learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


CLASS_TOKEN_STAGE = 4  # its position embedding has one vector more, in front, for the class token (spec section 1)


def fit_position_embeddings(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Brings `pos_embed{i}`, (1, cells, C), of a backbone's state to the grids of `own`, as the forward pass does it.

    An embedding that is not a square grid of the same width stays as it is, for `load_state` to refuse.

    Args:
        state: the file's entries with the backbone's names.
        own: the backbone's own state dict.

    Returns:
        The entries, and what was done to them, to be put after `load_state`'s account; '' where nothing was.
    """
    fitted, changes = dict(state), []
    for stage in range(1, 5):
        name, extra = f"pos_embed{stage}", int(stage == CLASS_TOKEN_STAGE)
        if name not in state or name not in own:
            continue
        old, new = grid_side(state[name], extra), grid_side(own[name], extra)
        if not old or not new or old == new or state[name].shape[2] != own[name].shape[2]:
            continue
        front, cells = state[name].tensor_split([extra], dim=1)
        cells = interpolate_position_embedding(cells.float(), (new, new)).to(front.dtype)  # (1, new * new, C)
        fitted[name] = torch.cat([front, cells], dim=1)
        changes.append(f"{name} from {old} x {old} to {new} x {new}")
    return fitted, f"; interpolated bilinearly: {', '.join(changes)}" if changes else ""


def grid_side(position_embedding: Tensor, extra: int) -> int:
    """Cells a side of an embedding (1, extra + G * G, C) of floating-point numbers; 0 where it is no square grid."""
    if position_embedding.ndim != 3 or position_embedding.shape[0] != 1 or not position_embedding.is_floating_point():
        return 0
    cells = max(position_embedding.shape[1] - extra, 0)
    return math.isqrt(cells) if math.isqrt(cells) ** 2 == cells else 0
