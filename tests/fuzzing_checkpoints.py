"""Hostile checkpoints, weights and text encoders, in every format that a file of weights may have."""

import argparse
import collections
import io
import json
import pickle
import random
import struct
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from models.text import build_text_model
from readers.checkpoint import load_state, read_checkpoint
from readers.optimizer_state import load_optimizer_state
from readers.text_encoder import load_text_encoder
from runtime.weights import fit_position_embeddings
from tests.fuzzing import NUMBERS, TEXTS, change, mutate, value
from tests.fuzzing_pickles import (
    BOMBS,
    SENTINEL,
    HidesMethods,
    RunsCode,
    mutate_pickle,
    mutate_records,
    with_pickle,
    write_torch,
)

BERT = {"vocab_size": 6, "hidden_size": 4, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 4}
BERT |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
BERT |= {"max_position_embeddings": 32, "type_vocab_size": 2, "initializer_range": 0.02}


class Tiny(nn.Module):
    """The names of a checkpoint at a size that takes no time."""

    def __init__(self):
        super().__init__()
        self.pos_embed1 = nn.Parameter(torch.zeros(1, 4, 4))
        self.pos_embed4 = nn.Parameter(torch.zeros(1, 5, 4))
        self.block = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


@cache
def trained() -> tuple[Tiny, torch.optim.Optimizer]:
    """A model and its optimizer after a step."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    take_step(model, optimizer)
    return model, optimizer


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer, which uses all of its state."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def valid_checkpoint(rng: random.Random) -> dict[str, Any]:
    """A whole checkpoint, new in each call."""
    model, optimizer = trained()
    arguments: Any = {"backbone": "pvt_small", "alpha": 8, "locals": [1, 1, 1, 0], "hidden_dim": 768, "lr": 1e-3}
    saved = optimizer.state_dict()
    return {
        "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizer": {
            "state": {number: dict(entry) for number, entry in saved["state"].items()},
            "param_groups": [dict(group) for group in saved["param_groups"]],
        },
        "lr_scheduler": {"t_initial": 50},
        "scaler": rng.choice([{}, torch.amp.GradScaler("cpu").state_dict()]),
        "epoch": 3,
        "step": 40,
        "best": {"acc1": 60.0, "epoch": 2},
        "args": rng.choice([arguments, argparse.Namespace(**arguments)]),
        "class_names": ["a", "b"],
        "best_acc": rng.choice([np.float64(60), np.int32(3), 60.0]),
        "bert_config": rng.choice([None, dict(BERT)]),
        "vocabulary_sha256": None,
    }


def hostile_tensor(rng: random.Random) -> Tensor:
    """A tensor of another type, shape, layout or device than a parameter's."""
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64]
    dtypes += [torch.uint16, torch.float8_e4m3fn]
    makers = [
        lambda: torch.zeros(rng.choice([(), (0,), (1,), (4, 3), (2, 4), (0, 4), (1, 4, 4), (1,) * 40, (2,) * 16])),
        lambda: torch.zeros(4, 3, dtype=rng.choice(dtypes)),
        lambda: torch.zeros(1).expand(rng.choice([(4, 3), (10**6, 10**6), (2**62,), (2, 4)])),
        lambda: torch.full((4, 3), rng.choice([float("nan"), float("inf"), 1e38])),
        lambda: torch.zeros(4, 3).to_sparse(),
        lambda: torch.zeros(4, 3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.qint8),
        lambda: torch.zeros(4, 3, device="meta"),
        lambda: torch.zeros(10, 10).t()[::2, 1:4],
        lambda: torch.zeros(1, 9, 4, dtype=rng.choice([torch.float32, torch.float16, torch.int64])),
        lambda: nn.Parameter(torch.zeros(4, 3)),
        lambda: torch.randn(1, rng.choice([0, 1, 2, 10, 16, 17]), 4),
    ]
    return rng.choice(makers)()


def hostile_object(rng: random.Random) -> Any:
    """What a checkpoint must not hold, or not there: code, containers of other kinds, shared or recursive lists."""
    shared: Any = []
    for _ in range(rng.choice([3, 40])):
        shared = rng.choice([list, tuple])((shared, shared))
    recursive: list[Any] = []
    recursive.append(recursive)
    hides = HidesMethods(weight=torch.zeros(2), epoch=1, acc1=2.0)
    objects = [shared, recursive, hides, hides]
    objects += [RunsCode(), {1, 2}, bytearray(9), b"x", 1j, torch.Size([1, 2]), torch.float32, torch.device("meta")]
    objects += [
        argparse.Namespace(a=1),
        collections.Counter("aab"),
        lambda: 0,
        hostile_tensor(rng),
        hostile_tensor(rng),
    ]
    return rng.choice(objects)


def change_checkpoint(rng: random.Random, checkpoint: Any) -> Any:
    """A checkpoint with a field, an entry or a name replaced."""
    kind = rng.randrange(6)
    if kind == 0:
        return change(rng, checkpoint)
    state = checkpoint["model"] if isinstance(checkpoint["model"], dict) else {}
    if kind == 1 and state:
        name = rng.choice([*state, *TEXTS, 5, None, "block.weight", "x" * 10**5])
        state[name] = rng.choice([hostile_tensor, hostile_object, value])(rng)
    elif kind == 2:
        prefix = rng.choice(["module.", "module._orig_mod.", "vision_model.", "\n", "_orig_mod.model."])
        key = rng.choice(["model", "model", "state_dict", "model_ema"])
        checkpoint[key] = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    elif kind == 3:
        holder = rng.choice([checkpoint, *[item for item in checkpoint.values() if isinstance(item, dict)]])
        holder[rng.choice([*holder, *TEXTS])] = rng.choice([hostile_object, value, value])(rng)
    elif kind == 4 and isinstance(checkpoint.get("optimizer"), dict):
        for _ in range(rng.choice([1, 2])):
            state = checkpoint["optimizer"]
            part = rng.choice([state, state.get("state"), state.get("param_groups")])
            part = rng.choice([part, *(part.values() if isinstance(part, dict) else [])])
            if isinstance(part, dict) and part:
                part[rng.choice(list(part))] = rng.choice(
                    [value(rng), hostile_tensor(rng), torch.zeros(3), rng.choice(NUMBERS)]
                )
    else:
        checkpoint[rng.choice(list(checkpoint))] = rng.choice([value(rng), None, 5, "x", [], {}, hostile_tensor(rng)])
    return checkpoint


def make_torch(rng: random.Random) -> bytes:
    """A file of torch.save in today's or the legacy format, a plain pickle, or a tar."""
    content: Any = valid_checkpoint(rng)
    if rng.random() < 0.15:
        content = content["model"]
    for _ in range(rng.choice([0, 1, 1, 2])):
        content = (
            change_checkpoint(rng, content)
            if isinstance(content, dict) and "model" in content
            else change(rng, content)
        )
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(
            [pickle.dumps({"model": RunsCode()}, rng.randrange(6)), pickle.dumps(value(rng), rng.randrange(6))]
        )
    if kind == 1:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("storages", "tensors", "pickle", "../x"):
                data = pickle.dumps(rng.choice([0, 1, value(rng), RunsCode()]), 2)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return mutate(rng, buffer.getvalue()) if rng.random() < 0.5 else buffer.getvalue()
    chance = rng.random()
    if chance > 0.98:
        return with_pickle(rng.choice(list(BOMBS.values())), zipped=kind < 9)
    data = write_torch(content, zipped=kind < 9)
    if kind < 9 and chance < 0.4 and data.startswith(b"PK"):
        return mutate_records(rng, data)
    if kind >= 9 and chance < 0.2:
        return mutate_pickle(rng, data)
    return mutate(rng, data) if chance < 0.6 else data


def make_safetensors(rng: random.Random) -> bytes:
    """A safetensors file whose header or bytes are wrong."""
    metadata = {"architecture": json.dumps({"name": "pvt", "backbone": "pvt_small"})}
    metadata |= {"class_names": '["a", "b"]', "transform": '{"center_crop": 64}', "lower_case": "true"}
    for _ in range(rng.choice([0, 1, 2])):
        metadata[rng.choice([*metadata, "vocabulary"])] = json.dumps(value(rng))
    state = {name: tensor.clone() for name, tensor in trained()[0].state_dict().items()}
    data = save(state, metadata if rng.random() < 0.5 else None)
    if rng.random() < 0.5:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        for _ in range(rng.choice([1, 2, 3])):
            header = change(rng, header)
        written = json.dumps(header).encode()
        data = struct.pack("<Q", rng.choice([len(written)] * 5 + [0, 2**63, 10**8])) + written + data[8 + length :]
    return mutate(rng, data) if rng.random() < 0.4 else data


def make_encoder(rng: random.Random, folder: Path) -> None:
    """A text encoder's folder."""
    folder.mkdir()
    config: Any = dict(BERT)
    for _ in range(rng.choice([0, 0, 1, 2])):
        config = change(rng, config)
    if isinstance(config, dict) and rng.random() < 0.2:
        config[rng.choice(list(BERT))] = rng.choice([5, 2**20, 2**40, -1, 0, "4", None, 0.5, 1e400])
    written = json.dumps(config).encode()
    (folder / "config.json").write_bytes(mutate(rng, written) if rng.random() < 0.2 else written)
    state: Any = {name: tensor.clone() for name, tensor in encoder_state().items()}
    for _ in range(rng.choice([0, 0, 1])):
        state[rng.choice(list(state))] = rng.choice([hostile_tensor, hostile_object, value])(rng)
    name = rng.choice(["pytorch_model.bin", "model.safetensors"])
    data = write_torch(state, zipped=rng.random() < 0.5)
    if name.endswith("safetensors"):
        data = save({name: tensor.contiguous() for name, tensor in encoder_state().items()})
    (folder / name).write_bytes(mutate(rng, data) if rng.random() < 0.3 else data)
    vocabulary = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\n"
    (folder / "vocab.txt").write_bytes(mutate(rng, vocabulary) if rng.random() < 0.3 else vocabulary)


@cache
def encoder_state() -> dict[str, Tensor]:
    """The state of a small BERT."""
    return build_text_model(BERT).state_dict()


def make_checkpoint(rng: random.Random, folder: Path) -> None:
    """A checkpoint named after the flag that reads it, or the folder of a text encoder."""
    kind = rng.randrange(10)
    if kind == 0:
        make_encoder(rng, folder / "encoder")
        return
    flag = rng.choice(["resume", "resume", "finetune", "visfinetune"])
    suffix = rng.choice([".pth", ".pth", ".tar", ".bin", "", ".safetensors"]) if kind > 2 else ".safetensors"
    content = make_safetensors(rng) if kind < 3 else make_torch(rng)
    (folder / f"{flag}{suffix}").write_bytes(content)


def read_any_checkpoint(folder: Path) -> None:
    """Reads it as its flag does, loads it into model and optimizer, and takes a step."""
    [path] = folder.iterdir()
    try:
        if path.is_dir():
            read_encoder(path)
        else:
            read_and_load(path, f"--{path.stem}")
    finally:
        assert not SENTINEL.exists(), "code in the file was run"


def read_encoder(path: Path) -> None:
    """Builds the encoder that a folder describes and runs it."""
    encoder = load_text_encoder(str(path))
    ids = encoder.tokenizer.encode("a b").ids
    model = build_text_model(encoder.config)
    check_account(load_state(model, encoder.state, "--bert-model x", may_lack=lambda name: name.startswith("pooler.")))
    model(ids.clamp(max=encoder.config["vocab_size"] - 1)[None])


def read_and_load(path: Path, flag: str) -> None:
    """Loads a checkpoint as a run does, and takes a step where the optimizer is there."""
    checkpoint = read_checkpoint(path, flag)
    model = Tiny()
    for name, tensor in checkpoint.model.items():
        assert type(name) is str
        assert tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    state, _ = fit_position_embeddings(checkpoint.model, model.state_dict())
    check_account(load_state(model, state, f"{flag} x", may_leave=lambda name: name.startswith("head.")))
    assert all(name.startswith("head.") or state[name].is_floating_point() for name in model.state_dict())
    if flag == "--resume":
        optimizer = torch.optim.AdamW(model.parameters())
        if checkpoint.optimizer is not None:
            load_optimizer_state(optimizer, checkpoint.optimizer, f"{flag} x")
        take_step(model, optimizer)
        assert checkpoint.epoch is None or type(checkpoint.epoch) is int
        assert f"{(checkpoint.best or {'acc1': 0.0})['acc1']:.2f}"
        if checkpoint.scaler:
            torch.amp.GradScaler("cpu").load_state_dict(checkpoint.scaler)
    if checkpoint.bert_config:
        build_text_model(checkpoint.bert_config)


def check_account(account: str) -> None:
    """One printable line of bounded length."""
    assert account.isprintable()
    assert len(account) < 8000
