"""What a run starts from: a checkpoint, pretrained parts, or nothing; and the model with those weights."""

import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import SETTINGS, TIMM, Network, create_model
from models.pvt import backbone_of, interpolate_position_embedding
from readers.checkpoint import load_state, newest_checkpoint, read_checkpoint
from readers.checkpoint_fields import Checkpoint
from readers.data_sets import DATA_SETS
from readers.text_encoder import encoder_of, load_text_encoder
from readers.tokenizer import Tokenizer
from utils import Processes, UserError, failing_together, gather, naming_flags, print0, printable

CLASS_TOKEN_STAGE = 4  # its position embedding has one more vector, in front, for the class token


@dataclass
class Start:
    """What a run starts from.

    Attributes:
        checkpoint: of --resume or --finetune; None for a fresh run.
        bert_config, tokenizer: of a network that reads text.
        text_state: the pretrained text encoder of a fresh run, until it is loaded.
    """

    checkpoint: Checkpoint | None = None
    bert_config: dict[str, Any] | None = None
    tokenizer: Tokenizer | None = None
    text_state: dict[str, Tensor] | None = None


def resolve_resume(options: Namespace, network: Network, processes: Processes) -> Checkpoint | None:
    """Puts the file that `--resume auto` stands for into the options, '' if there is none yet.

    Process 0 looks, and all take what it sees: the output folder is shared, but another process may look too early.

    Returns:
        On process 0, the checkpoint that it has read to choose it.
    """
    if options.resume != "auto":
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and not options.resume:
            print0("warning: the launcher has started this run again, and without --resume auto it loses what was done")
        return None
    newest = None
    with failing_together():
        if processes.is_main:
            newest = newest_checkpoint(Path(options.output_dir), network.checkpoint)
    options.resume = gather(str(newest[0]) if newest else "")[0]
    if options.eval and not options.resume:
        raise UserError(f"--resume auto: no checkpoint in --output-dir {options.output_dir}")
    if options.resume and options.finetune:
        print0(f"--finetune {options.finetune} is not read: {options.resume} has the weights")
        options.finetune = ""
    if not options.resume:
        print0(f"--resume auto: no checkpoint in {options.output_dir} yet, the run starts from the beginning")
    return newest[1] if newest else None


def find_own_name(options: Namespace, network: Network) -> None:
    """Puts the network's own file into --resume and --finetune if they name one as the published script called it.

    `main_V.py` writes `checkpoint_v.pth`, where the published script wrote `checkpoint.pth`.
    """
    for flag in ("resume", "finetune"):
        path = Path(getattr(options, flag))
        if not path.name.startswith("checkpoint") or path.exists():
            continue
        own = path.with_name(network.checkpoint + path.name.removeprefix("checkpoint"))
        if own.is_file():
            print0(
                f"--{flag} {printable(path)}: no such file; {own.name} beside it is read, as {network.name} calls it"
            )
            setattr(options, flag, str(own))


def read_start(options: Namespace, network: Network, checkpoint: Checkpoint | None = None) -> Start:
    """What the run starts from: a checkpoint (--resume, --finetune), or a pretrained text encoder, or nothing.

    Args:
        checkpoint: that of --resume, if it has been read already.
    """
    flag, path = source_of(options)
    if not path:
        return pretrained_text(options.bert_model) if network.reads_text else Start()
    checkpoint = checkpoint or read_checkpoint(path, flag)
    check_network(options, network, checkpoint, f"{flag} {path}")
    warn_of_lists(options, checkpoint, f"{flag} {path}")
    if network.reads_images and (options.eval or flag == "--finetune"):
        warn_of_input_size(options, checkpoint, f"{flag} {path}")
    if options.eval or not options.resume:
        checkpoint.optimizer = None  # as large as the network, and not needed
    start = Start(checkpoint)
    if network.reads_text:
        start.bert_config, start.tokenizer = encoder_of(checkpoint, options.bert_model, f"{flag} {path}")
    return start


def source_of(options: Namespace) -> tuple[str, str]:
    """The flag that names the checkpoint of the run, and the file, '' if there is none."""
    return ("--resume", options.resume) if options.resume else ("--finetune", options.finetune)


def pretrained_text(bert_model: str) -> Start:
    """A start from the text encoder that --bert-model names."""
    encoder = load_text_encoder(bert_model)
    return Start(None, encoder.config, encoder.tokenizer, encoder.state)


def warn_of_input_size(options: Namespace, checkpoint: Checkpoint, source: str) -> None:
    """Warns if the weights were trained with images of another size than the run's."""
    trained = checkpoint.args.get("input_size", options.input_size)
    if trained != options.input_size:
        print0(
            f"warning: {source}: trained with --input-size {trained}, found --input-size {options.input_size}: "
            f"accuracy may fall; give --input-size {trained} for the size of its training"
        )


def check_network(options: Namespace, network: Network, checkpoint: Checkpoint, source: str) -> None:
    """Raises UserError for a checkpoint of another network, or of one with other settings, than the run's."""
    trained = checkpoint.network
    if trained.name != network.name:
        raise UserError(
            f"{source}: expected a checkpoint of {network.name}, found one of {trained.name}: use {trained.command}"
        )
    known = checkpoint.known_settings
    for name in network.settings:
        asked, used = getattr(options, name), known.get(name, getattr(options, name))
        if asked != used and name == "fuse_mlp_dim" and name not in checkpoint.args:
            print0(f"{source}: {flag_value(name, used)}, as its weights have it")
            options.fuse_mlp_dim = used
        elif asked != used:
            raise UserError(f"{source}: trained with {flag_value(name, used)}, found {flag_value(name, asked)}")


def warn_of_lists(options: Namespace, checkpoint: Checkpoint, source: str) -> None:
    """Warns of a checkpoint that was trained on other lists, whose train may hold images of this run's test."""
    trained, record = checkpoint.args.get("annotations", ""), DATA_SETS.get(str(checkpoint.args.get("dataset", "SER")))
    if trained != options.annotations and record is not None and record.has_list_folders:
        both = (trained, options.annotations)
        used, asked = (f"--annotations {one}" if one else "SER30K's own lists" for one in both)
        print0(f"warning: {source}: trained with {used}, found {asked}: train may have had images of this test")


def flag_value(name: str, value: Any) -> str:
    """An option as one types it."""
    return f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def check_classes(options: Namespace, start: Start, class_names: Sequence[str]) -> None:
    """Raises UserError if a run continues or evaluates a model of other classes than the data set's."""
    trained = start.checkpoint.class_names if start.checkpoint else None
    if (options.resume or options.eval) and trained and list(trained) != list(class_names):
        raise UserError(
            f"{' '.join(source_of(options))}: expected a model of the classes {', '.join(class_names)}, found one of "
            f"{', '.join(trained)}: check --dataset, or start from its weights with --finetune"
        )


def build_model(options: Namespace, network: Network, start: Start, num_classes: int) -> nn.Module:
    """The network with the weights that it starts from; says what was loaded."""
    settings = {name: getattr(options, name) for name in (*network.settings, *network.rates)}
    if network.reads_text:
        settings["bert"] = start.bert_config
    flags = {"bert": "--bert-model", "name": "--model", "pretrained": "--pretrained"}
    if network.name.startswith(TIMM) and start.checkpoint is None:
        settings["pretrained"] = options.visfinetune or options.pretrained
        flags["pretrained"] = "--visfinetune" if options.visfinetune else "--pretrained"
    with naming_flags(SETTINGS, **flags):
        model = create_model(network.name, num_classes=num_classes, **settings)
    if network.reads_text and options.bert_dim not in (None, width := model.text_model.config.hidden_size):
        raise UserError(
            f"--bert-dim {options.bert_dim}: expected {width}, the text encoder's width; leave the flag out"
        )
    if start.checkpoint is None:
        load_pretrained(options, network, start, model)
    else:
        load_checkpoint(options, start.checkpoint, model)
    return model


def load_pretrained(options: Namespace, network: Network, start: Start, model: Any) -> None:
    """Loads the text encoder of --bert-model and the backbone of --visfinetune; the text encoder's copy is dropped."""
    if start.text_state is not None:
        source = f"--bert-model {options.bert_model}"
        print0(load_state(model.text_model, start.text_state, source, may_lack=is_pooler))
        start.text_state = None
    if options.visfinetune and network.is_pyramid:
        backbone, source = backbone_of(model), f"--visfinetune {options.visfinetune}"
        state = read_checkpoint(options.visfinetune, "--visfinetune").model
        state, interpolated = fit_position_embeddings(state, backbone.state_dict())
        print0(load_state(backbone, state, source, may_lack=is_new, may_leave=is_head) + interpolated)


def load_checkpoint(options: Namespace, checkpoint: Checkpoint, model: nn.Module) -> None:
    """Loads the weights of --resume or --finetune, whose copy is dropped; a training's state stays until it is used."""
    if options.visfinetune:
        print0(f"--visfinetune {options.visfinetune} is not read: the checkpoint has the backbone's weights")
    source = " ".join(source_of(options))
    if not (options.resume or options.eval):
        print0(load_state(model, checkpoint.model, source, may_leave=is_head))
        checkpoint.drop_tensors()
        return
    state = checkpoint.model_ema if options.eval and options.model_ema else checkpoint.model
    if state is None:
        raise UserError(f"--model-ema: {source} has no moving average: leave the flag out")
    print0(load_state(model, state, source))
    if options.eval:
        checkpoint.drop_tensors()
    checkpoint.model = {}


def is_pooler(name: str) -> bool:
    """Whether a parameter is of BERT's pooler, whose output is not used."""
    return name.startswith("pooler.")


def is_new(name: str) -> bool:
    """Whether a parameter is added to the backbone: LORA's, TGCA-PVT's, or the classifier of --model pvt."""
    added = ("cls_token1", "cls_token2", "cls_token3", "local_proj", "global_proj", "conv")
    return is_head(name) or name.startswith(added) or ".fft." in name


def is_head(name: str) -> bool:
    """Whether a parameter is of the classifier, or of the one that distillation adds."""
    return name.startswith(("head.", "head_dist."))


def fit_position_embeddings(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Brings `pos_embed{i}`, (1, cells, C), of a backbone's state to the grids of `own`, as the forward pass does it.

    An embedding that is not a square grid of the same width stays as it is, for `load_state` to refuse.

    Args:
        state: the file's entries with the backbone's names.
        own: the backbone's own state dict.

    Returns:
        The entries, and what was done to them, to be put after `load_state`'s account; '' if nothing was.
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
    """Cells a side of an embedding (1, extra + G * G, C) of floating-point numbers; 0 if it is no square grid."""
    if position_embedding.ndim != 3 or position_embedding.shape[0] != 1 or not position_embedding.is_floating_point():
        return 0
    cells = max(position_embedding.shape[1] - extra, 0)
    return math.isqrt(cells) if math.isqrt(cells) ** 2 == cells else 0
