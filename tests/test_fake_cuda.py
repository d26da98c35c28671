"""The path of a GPU without one: networks, inputs and losses on fake CUDA tensors, which know devices and shapes alone.

A tensor on the wrong device, or a call that only a CPU answers, fails here. Values, the backward pass and pinned memory
need a GPU: docs/gpu.md lists what does not run here.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from engine import Precision
from models import NETWORKS as KNOWN
from models import create_model, get_network
from tests.conftest import BERT

CUDA = torch.device("cuda")
SMALL = {"backbone": "pvt_demo", "num_classes": 3}
FUSED = {**SMALL, "alpha": 2, "hidden_dim": 24}
NETWORKS = {
    "lora": {**FUSED, "bert": BERT},
    "lora, locals 0000": {**FUSED, "bert": BERT, "locals": (0, 0, 0, 0)},
    "lora_v": FUSED,
    "tgca_pvt": {**FUSED, "bert": BERT},
    "tgca_pvt_v": FUSED,
    "tgca_pvt_lora_locals": {**FUSED, "bert": BERT},
    "pvt": SMALL,
    "timm/resnet10t": {"num_classes": 3, "input_size": 64},
    "bert": {"num_classes": 3, "bert": BERT},
    "majority": {"num_classes": 3},
}


@pytest.fixture
def autocast_on_cuda():
    """Autocast on CUDA turns itself off if there is no GPU."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", before)


def test_every_network_is_here():
    assert set(KNOWN) <= set(NETWORKS)


def make_batch(size=64, count=2):
    """A batch as the loader gives it, on the CPU."""
    return {
        "image": torch.zeros(count, 3, size, size),
        "label": torch.zeros(count, dtype=torch.long),
        "index": torch.arange(count),
        "word_ids": torch.ones(count, 30, dtype=torch.long),
        "word_mask": torch.ones(count, 30, dtype=torch.long),
        "topics": torch.zeros(count, dtype=torch.long),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("amp_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs_on_fake_cuda_tensors(name, amp_dtype, training, autocast_on_cuda):
    network = name.partition(",")[0]
    reads = get_network(network).reads
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        with CUDA:
            model = create_model(network, **NETWORKS[name]).train(training)
        batch = make_batch()
        if "text" not in reads:
            del batch["word_ids"], batch["word_mask"]
        if "topic" not in reads:
            del batch["topics"]
        precision = Precision(CUDA, amp_dtype, torch.channels_last)
        inputs = precision.inputs(batch)
        assert all(tensor.device.type == "cuda" for tensor in inputs[: len(inputs) - ("topic" in reads)])
        torch.set_autocast_dtype("cuda", amp_dtype)
        torch.set_autocast_enabled("cuda", amp_dtype != torch.float32)
        with torch.set_grad_enabled(training):
            logits = model(*inputs)
            loss = torch.nn.CrossEntropyLoss(label_smoothing=0.2)(logits.float(), batch["label"].to(CUDA))
    assert (logits.device.type, tuple(logits.shape)) == ("cuda", (2, 3))
    assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
    if network not in ("majority",):
        assert logits.dtype == amp_dtype
