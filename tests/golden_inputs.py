"""The golden files' inputs, and what a network must give on them: numbers of the published implementations."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import create_model, get_network

TEXT_LENGTH = 30


def golden_fill(named_shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Parameters of the golden files by name and shape, float64."""
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
    """Images of the golden files, float64 (b, 3, h, w)."""
    return torch.from_numpy(golden_random(seed).standard_normal((b, 3, h, w)))


def golden_texts(seed: int, b: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of the golden files, int64 (b, 30) each."""
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


def golden_model(case, dtype=torch.float64):
    """The network of a case with the golden parameters, in evaluation mode."""
    network = get_network(case["model"].lower())
    settings = {name: case[name] for name in ("alpha", "locals", *["tunebert"] * network.reads_text)}
    model = create_model(network.name, drop_path=0.0, fuse_dropout_rate=0.0, **settings)
    state = golden_fill({name: tuple(value.shape) for name, value in model.state_dict().items()})
    for name, factor in case.get("scaled", {}).items():
        state[name] *= factor
    model.double().load_state_dict(state)
    return model.to(dtype).eval()


def golden_inputs(case, dtype=torch.float64):
    """What the network of a case is called with."""
    images = golden_images(case["seed"], case["batch"], case["height"], case["width"]).to(dtype)
    texts = golden_texts(case["seed"], case["batch"]) if get_network(case["model"].lower()).reads_text else ()
    return (images, *texts, *([torch.tensor(case["topics"])] if "topics" in case else []))


def assert_golden_forward(case, logits, features):
    """Logits, and the visual features that lead to them, are the published ones."""
    torch.testing.assert_close(logits, torch.tensor(case["logits"], dtype=torch.float64), rtol=0, atol=1e-9)
    assert [selected.tolist() for selected in features.selected] == case["selected"]
    assert list(features.tokens.shape) == case["visual_tokens_shape"]
    assert features.tokens.sum().item() == pytest.approx(case["visual_tokens_sum"], abs=1e-8)
    assert features.tokens.abs().mean().item() == pytest.approx(case["visual_tokens_abs_mean"], abs=1e-10)


def assert_golden_gradients(case):
    """Loss and the norms of all gradients are the published ones."""
    model = golden_model(case)
    logits = model(*golden_inputs(case))
    torch.testing.assert_close(logits, torch.tensor(case["logits"], dtype=torch.float64), rtol=0, atol=1e-9)
    loss = F.cross_entropy(logits, torch.tensor(case["targets"]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(case["loss"], abs=1e-9)
    loss.backward()
    norms = {name: None if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == case["grad_l2"].keys()
    for parameter, expected in case["grad_l2"].items():
        assert (norms[parameter] is None) == (expected is None), parameter
        if expected is not None:  # key biases are rounding noise: their tolerance is absolute
            assert norms[parameter] == pytest.approx(expected, rel=1e-8, abs=1e-12), parameter


def assert_golden_names(key, shapes):
    """A network's parameters have the published names and shapes, in that order; `key` is its name and settings."""
    name, locals_, alpha = key.split()
    locals_ = [int(digit) for digit in locals_.removeprefix("locals=")]
    with torch.device("meta"):
        model = create_model(name.lower(), alpha=int(alpha.removeprefix("alpha=")), locals=locals_)
    assert [(name, list(value.shape)) for name, value in model.state_dict().items()] == list(shapes.items())
