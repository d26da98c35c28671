"""The state of every random generator of a process, as plain tensors and numbers that a checkpoint may hold."""

import os
import random
from typing import Any

import numpy as np
import torch


def set_seeds(seed: int) -> None:
    """Seeds torch (all devices), numpy's global generator and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from numpy's global generator)
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators on the CPU and on `device`, of numpy's global one and of Python's."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    _, python_words, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "numpy_gauss": float(numpy_state["gauss"]) if numpy_state["has_gauss"] else None,
        "python": torch.tensor(python_words),
        "python_gauss": python_gauss,
    }
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the generators into a state that `random_state` gave; a device that it does not know keeps its own."""
    torch.set_rng_state(state["torch"])
    gauss = state["numpy_gauss"]
    key = state["numpy"].numpy().astype(np.uint32)
    numpy_state = ("MT19937", key, state["numpy_position"], int(gauss is not None), gauss or 0.0)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate((3, tuple(state["python"].tolist()), state["python_gauss"]))
    if device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])


def make_deterministic() -> None:
    """Lets torch use only operations that give the same bits each time; to be called before CUDA is used.

    Operations without such a form raise a RuntimeError that names them.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time and changes no result
    torch.backends.cudnn.benchmark = False
