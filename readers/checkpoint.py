"""Checkpoint files: reading without running code, writing whole, and loading into a model with a full account."""

import argparse
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from readers.checkpoint_fields import Checkpoint, check_fields
from readers.checkpoint_layouts import as_checkpoint, fields_of_export
from readers.fetch import fetch
from readers.numpy_scalars import STAND_INS
from readers.pickle_check import RefusedPickle, check_pickle
from utils import UserError, print0, printable, shown

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
NAMES_SHOWN = 6  # of a long list of parameters
NAME_LENGTH = 100  # of a hostile name, which may be longer than a screen
SAFETENSORS = ".safetensors"
LFS_START = b"version https://git-lfs.github.com/spec/"
MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
START_BYTES = 512


def read_weights_file(path: str | Path, flag: str) -> Any:
    """Reads a PyTorch or safetensors file onto the CPU; a pickle may hold tensors, plain values and Namespaces only.

    Numbers of numpy come as Python's.

    Args:
        path: a file, or where to fetch it, `https://...` (see `readers.fetch`).

    Raises:
        UserError: a file that is missing, broken, or holds anything else.
    """
    return read_file(find_weights_file(path, flag), f"{flag} {printable(path)}")


def find_weights_file(path: str | Path, flag: str) -> Path:
    """The file itself, fetched if an address is given; raises UserError."""
    file = fetch(path, flag) if isinstance(path, str) and ADDRESS.match(path) else Path(path)
    if not os.path.isfile(file):
        raise UserError(f"{flag} {printable(path)}: no such file; check the path")
    return file


def read_file(path: Path, source: str) -> Any:
    """What a file of weights holds; `source` is flag and file as they were given."""
    try:
        if (other := other_kind(path)) is not None:
            raise UserError(f"{source}: expected a PyTorch or safetensors file, found {other}")
        if path.suffix == SAFETENSORS:
            return load_file(path)
        check_pickle(path)
        with torch.serialization.safe_globals([argparse.Namespace, *STAND_INS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except RefusedPickle as error:
        raise UserError(f"{source}: refused, {error}; use a file that holds weights alone") from error
    except pickle.UnpicklingError as error:  # its message is many lines of advice, to allow what must not be allowed
        raise UserError(f"{source}: refused, it is not a PyTorch file, or is damaged; fetch it again") from error
    except Exception as error:  # torch and safetensors meet a hostile file with nearly any exception
        reason = printable((str(error).splitlines() or [""])[0] or type(error).__name__, 200)
        raise UserError(
            f"{source}: expected a PyTorch or safetensors file, found a damaged or other one: {reason}"
        ) from error


def other_kind(path: Path) -> str | None:
    """What a file is that often comes in place of weights, and what to do; None if it is none of these."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "an empty file; fetch it again"
    if start.startswith(LFS_START):
        return "a Git LFS pointer, which names the file that it stands for; fetch that with `git lfs pull`"
    if text.startswith(MARKUP):
        return "a web page; open the address in a browser and fetch the file that it leads to"
    if text.startswith((b'{"', b"{\n", b"{\r", b"{ ")):
        return "a JSON text, perhaps a server's message; open it in an editor"
    if start.startswith(b"\x1f\x8b"):
        return "a compressed archive; unpack it, and name the file in it"
    return None


def read_checkpoint(path: str | Path, flag: str) -> Checkpoint:
    """Reads a checkpoint: of this project, a published one, its own export to safetensors, or a bare state dict.

    `args` of a published checkpoint, a Namespace, comes as a dictionary. What other tools put around and into a state
    dict is taken off (`readers.checkpoint_layouts`).

    Raises:
        UserError: as `read_weights_file`, or a field that is not as a run needs it, with its name.
    """
    file, source = find_weights_file(path, flag), f"{flag} {printable(path)}"
    content = read_file(file, source)
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected a dictionary of weights, found {type(content).__name__}")
    content = as_checkpoint(content)
    if file.suffix == SAFETENSORS:
        with safe_open(file, "pt") as opened:
            content |= fields_of_export(opened.metadata() or {}, source)
    return check_fields(content, flag, source, file.stat().st_size)


def newest_checkpoint(folder: Path, stem: str) -> tuple[Path, Checkpoint] | None:
    """The newest whole checkpoint of a run: `<stem>.pth`, `<stem>_best.pth` or `<stem>_epoch<number>.pth`.

    Returns:
        Its path and content; None if there is no checkpoint at all. One that cannot be read is passed over, with a
        warning.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    name = re.compile(rf"{re.escape(stem)}(_best|_epoch\d+)?\.pth")
    candidates = [path for path in folder.glob("*.pth") if name.fullmatch(path.name)]
    candidates.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in candidates:
        try:
            return path, read_checkpoint(path, "--resume")
        except UserError as error:
            print0(f"warning: passed over: {error}")
    if candidates:
        raise UserError(
            f"--resume auto: none of the {len(candidates)} checkpoints in {folder} can be read; "
            "move them away to start from the beginning"
        )
    return None


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    may_lack: Callable[[str], bool] = lambda name: False,
    may_leave: Callable[[str], bool] = lambda name: False,
    advice: str = "check --model, --backbone, --alpha, --locals, --hidden-dim and the class count of --dataset",
) -> str:
    """Loads a state dict into the model; any name or shape that differs, beyond what is allowed, is an error.

    Args:
        source: flag and file, for the message.
        may_lack: which of the model's parameters the file need not have; they keep their initial values.
        may_leave: which entries of the file may be left over, or have another shape than the model's.
        advice: what to do about differences, in words of the caller's flags.

    Returns:
        What was loaded, what was left over and what keeps its initial values, in one line.

    Raises:
        UserError: the differences, grouped and counted. The model is left as it was.
    """
    own = model.state_dict()
    left = [name for name in state if name not in own and not may_leave(name)]
    lacking = [name for name in own if name not in state and not may_lack(name)]
    fitting = {name: value for name, value in state.items() if name in own and fits(value, own[name])}
    unfit = [name for name in state if name in own and name not in fitting and not may_leave(name)]
    others = {
        "of another shape": [
            f"{printable(name, NAME_LENGTH)} {shown(list(state[name].shape))} for {list(own[name].shape)}"
            for name in unfit
            if state[name].shape != own[name].shape
        ],
        "of another type": [
            f"{printable(name, NAME_LENGTH)} {state[name].dtype} for {own[name].dtype}"
            for name in unfit
            if state[name].shape == own[name].shape
        ],
    }
    problems = list_names({"missing": lacking, "left over": left} | others)
    if problems:
        raise UserError(
            f"{source}: does not fit the model ({len(own)} entries expected, {len(state)} found); {problems}; {advice}"
        )
    model.load_state_dict(fitting, strict=False)  # what is missing or left over was accounted for above
    remarks = list_names(
        {
            "keep their initial values": sorted(own.keys() - fitting.keys()),
            "left over": sorted(state.keys() - fitting.keys()),
            "with values that are not finite numbers": [name for name in fitting if not own[name].isfinite().all()],
        }
    )
    return f"{source}: {len(fitting)} of {len(own)} entries loaded" + (f"; {remarks}" if remarks else "")


def fits(value: Tensor, own: Tensor) -> bool:
    """Whether a tensor can take another's place: the same shape, and floating-point numbers for such numbers alone."""
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def list_names(groups: Mapping[str, list[str]]) -> str:
    """Groups of names, those that are not empty, each with its count."""
    return "; ".join(f"{len(names)} {what}: {shorten(names)}" for what, names in groups.items() if names)


def shorten(names: list[str]) -> str:
    """The first few of a list of names."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(printable(name, 3 * NAME_LENGTH) for name in names[:NAMES_SHOWN]) + more
