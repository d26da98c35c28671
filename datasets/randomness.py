"""Random augmentation that depends on a seed alone, not on the process that runs it or on what it drew before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_generators() -> Iterator[None]:
    """Puts the generators that augmentation draws from back as they were, at the end.

    These are the generators of `random`, of numpy's global functions and of torch on the CPU: timm and torchvision
    draw from all three.
    """
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_generators(seed: int) -> None:
    """Seeds the same generators, with 0 to 2**64 - 1.

    `torch.manual_seed` would seed CUDA as well, and costs 100 times as much.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
