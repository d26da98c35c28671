"""Random augmentation that depends on a seed alone, not on the process that runs it or on what it drew before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators that augmentation draws from, and puts them back as they were at the end.

    These are the generators of `random`, of numpy's global functions and of torch on the CPU: timm and torchvision
    draw from all three. `torch.manual_seed` would seed CUDA as well, and costs 100 times as much.

    Args:
        seed: from 0 to 2**64 - 1.
    """
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the generator that timm draws from)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
