"""Checkpoint files: reading without running code, writing whole, and loading into a model with a full account."""

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from errors import UserError
from utils.logging import print0, write_whole

NAMES_SHOWN = 6  # of a long list of parameters


def read_weights_file(path: str | Path, flag: str) -> Any:
    """Reads a PyTorch or safetensors file onto the CPU; a pickle may hold tensors, plain values and Namespaces only.

    Raises:
        UserError: a file that is missing, broken, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds objects other than tensors, numbers and text, which could run code"
        if "Unsupported global" not in str(error) and "Unsupported class" not in str(error):
            reason = "it is not a PyTorch file, or is damaged"
        raise UserError(f"{flag} {path}: refused, {reason}; use a file that holds weights alone") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise unreadable(path, flag, error) from error
    except (SafetensorError, zipfile.BadZipFile, OverflowError, AssertionError) as error:
        raise unreadable(path, flag, error) from error


def unreadable(path: Path, flag: str, error: Exception) -> UserError:
    """The error for a file that cannot be read as weights."""
    first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"{flag} {path}: expected a PyTorch or safetensors file, found a damaged or other one: {first_line}"
    )


def read_checkpoint(path: str | Path, flag: str) -> dict[str, Any]:
    """Reads a checkpoint: a dictionary with `model`, or a bare state dict, which becomes one.

    `args` of a published checkpoint, a Namespace, comes as a dictionary. A `module.` prefix is taken off all names.
    """
    checkpoint = read_weights_file(path, flag)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{flag} {path}: expected a dictionary of weights, found {type(checkpoint).__name__}")
    checkpoint = dict(checkpoint) if "model" in checkpoint else {"model": checkpoint}
    state = checkpoint["model"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{flag} {path}: its model is not a dictionary of tensors; is it a checkpoint of this project?")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    checkpoint["model"] = dict(state)
    arguments = checkpoint.get("args") or {}
    checkpoint["args"] = dict(vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments)
    return checkpoint


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint under a temporary name and renames it; the one before stays until then."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def newest_checkpoint(folder: Path, stem: str) -> Path | None:
    """The newest whole checkpoint of a run: `<stem>.pth`, `<stem>_best.pth` or `<stem>_epoch<number>.pth`.

    Returns:
        Its path; None where there is no checkpoint at all. One that cannot be read is passed over, and this is said.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    name = re.compile(rf"{re.escape(stem)}(_best|_epoch\d+)?\.pth")
    candidates = [path for path in folder.glob("*.pth") if name.fullmatch(path.name)]
    candidates.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in candidates:
        try:
            read_checkpoint(path, "--resume")
            return path
        except UserError as error:
            print0(f"warning: passed over: {error}")
    if candidates:
        raise UserError(
            f"--resume auto: none of the {len(candidates)} checkpoints in {folder} can be read; "
            "move them away to start afresh"
        )
    return None


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    may_lack: Callable[[str], bool] = lambda name: False,
    may_leave: Callable[[str], bool] = lambda name: False,
) -> str:
    """Loads a state dict into the model; any name or shape that differs, beyond what is allowed, is an error.

    Args:
        source: flag and file, for the message.
        may_lack: which of the model's parameters the file need not have; they keep their initial values.
        may_leave: which entries of the file may be left over, or have another shape than the model's.

    Returns:
        What was loaded, what was left over and what keeps its initial values, in one line.

    Raises:
        UserError: the differences, grouped and counted. The model is left as it was.
    """
    own = model.state_dict()
    left = [name for name in state if name not in own and not may_leave(name)]
    lacking = [name for name in own if name not in state and not may_lack(name)]
    other_shape = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape and not may_leave(name)
    ]
    problems = [
        f"{len(names)} {what}: {shorten(names)}"
        for what, names in (("missing", lacking), ("left over", left), ("of another shape", other_shape))
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: does not fit the model ({len(own)} entries expected, {len(state)} found); "
            + "; ".join(problems)
            + "; check --model, --backbone, --alpha, --locals, --hidden-dim and the class count of --dataset"
        )
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)  # what is missing or left over was accounted for above
    account = f"{source}: {len(fitting)} of {len(own)} entries loaded"
    for names, what in (
        (own.keys() - fitting.keys(), "keep their initial values"),
        (state.keys() - fitting.keys(), "left over"),
    ):
        if names:
            account += f"; {len(names)} {what}: {shorten(sorted(names))}"
    return account


def shorten(names: list[str]) -> str:
    """The first few of a list of names."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
