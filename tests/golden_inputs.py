"""LORA and LORA-V in textbook form: the formulas of the specification, written out over a state dict.

Nothing here is fast and nothing is taken from `models/`, which the tests compare with it and the benchmark times
against it: attention keeps its maps, re-attention multiplies whole maps into N x N matrices, and the fusion block
computes every token though only the first is used. No dropout, no drop path; gradients flow everywhere but through
the choice of patches. Float32 and float64.

Shapes: B images, N tokens of a stage, M reduced key/value tokens, each with the class token where the stage has one;
C channels of a stage, D of the visual sequence, E of the fusion head.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

TEXT_LENGTH = 30


def golden_fill(named_shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Parameters of the golden files by name and shape, float64 (section 7)."""
    return {name: torch.from_numpy(golden_values(name, tuple(shape))) for name, shape in named_shapes.items()}


def golden_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter of the golden files: noise seeded with its name, scaled by the first rule that fits."""
    noise = golden_random(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        return 1 + 0.1 * noise if name.endswith(".weight") else 0.02 * noise
    if "embed" in name or "token" in name:
        return 0.2 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def golden_images(seed: int, b: int, h: int, w: int) -> Tensor:
    """Images of the golden files, float64 (b, 3, h, w) (section 7)."""
    return torch.from_numpy(golden_random(seed).standard_normal((b, 3, h, w)))


def golden_texts(seed: int, b: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of the golden files, int64 (b, 30) each (section 7)."""
    random = golden_random(seed)
    ids = torch.zeros(b, TEXT_LENGTH, dtype=torch.long)
    mask = torch.zeros(b, TEXT_LENGTH, dtype=torch.long)
    for row in range(b):
        length = int(random.randint(2, 31))
        ids[row, :length] = torch.from_numpy(random.randint(1000, 30000, length))
        ids[row, 0], ids[row, length - 1] = 101, 102
        mask[row, :length] = 1
    return ids, mask


def golden_random(seed: int) -> np.random.RandomState:
    """The generator of the golden files, whose stream NumPy has frozen."""
    return np.random.RandomState(seed)
