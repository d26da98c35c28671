"""Re-attention in row form against the textbook products of whole maps, and its memory."""

from dataclasses import replace

import pytest
import torch

from errors import UserError
from models import BACKBONES, create_model, reattention
from models.fusion import FusionBlock
from tests import oracle


def random_maps(num_blocks, queries, keys, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = [torch.randn(2, 3, queries, 8, dtype=torch.float64, generator=generator) for _ in range(num_blocks)]
    k = [torch.randn(2, 3, keys, 8, dtype=torch.float64, generator=generator) for _ in range(num_blocks)]
    maps = [(a @ b.mT * 8**-0.5).softmax(-1) for a, b in zip(q, k, strict=True)]
    return q, k, maps


@pytest.mark.parametrize("num_blocks", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("last_stage", [False, True])
@pytest.mark.parametrize("block_elements", [1, 2**18])
def test_row_form_is_the_textbook_product(num_blocks, last_stage, block_elements, monkeypatch):
    monkeypatch.setitem(reattention.BLOCK_ELEMENTS, "cpu", block_elements)
    q, k, maps = random_maps(num_blocks, queries=41, keys=41 if last_stage else 11)
    scores = reattention.class_token_scores(q, k, last_stage=last_stage)
    expected = oracle.reattention_scores(maps, last_stage=last_stage)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-15)


def test_no_gradient_passes_through_the_choice():
    q, k, _ = random_maps(3, queries=20, keys=5)
    for tensor in (*q, *k):
        tensor.requires_grad_(True)
    assert not reattention.class_token_scores(q, k, last_stage=False).requires_grad


def test_largest_tensor_is_linear_in_the_number_of_tokens(monkeypatch):
    """At 4 times the tokens, queries and keys both, no step may make a tensor of more than some rows of a map."""
    monkeypatch.setitem(reattention.BLOCK_ELEMENTS, "cpu", 1)
    largest = 0
    softmax = reattention.softmax

    def measured(logits):
        nonlocal largest
        largest = max(largest, logits.numel())
        return softmax(logits)

    monkeypatch.setattr(reattention, "softmax", measured)
    q, k, _ = random_maps(4, queries=800, keys=50)
    reattention.class_token_scores(q, k, last_stage=False)
    assert largest == 2 * 3 * reattention.MIN_BLOCK_ROWS * 50


@pytest.mark.parametrize(
    ("locals_", "depths", "size", "alpha"),
    [
        ([1, 1, 1, 0], (3, 4, 6, 3), (96, 160), 8),
        ([0, 0, 0, 0], (2, 2, 2, 2), (64, 128), 8),
        ([1, 0, 0, 0], (2, 3, 2, 3), (160, 64), 5),
        ([0, 1, 0, 0], (2, 5, 3, 4), (64, 64), 4),
        ([0, 0, 1, 0], (3, 2, 5, 5), (128, 96), 3),
        ([1, 0, 1, 0], (4, 2, 3, 6), (32, 32), 1),
        ([1, 1, 0, 0], (5, 6, 2, 2), (96, 96), 9),
        ([0, 1, 1, 0], (2, 3, 4, 3), (64, 96), 6),
    ],
)
def test_whole_network_is_the_textbook_network(locals_, depths, size, alpha, monkeypatch):
    monkeypatch.setitem(BACKBONES, "pvt_test", replace(BACKBONES["pvt_demo"], depths=depths))
    model = create_model("lora_v", locals=locals_, backbone="pvt_test", alpha=alpha, hidden_dim=96).double().eval()
    filled = oracle.golden_fill({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(filled)
    images = oracle.golden_images(1, 2, *size)
    heads = model.vision_model.config.num_heads
    with torch.no_grad():
        expected = oracle.lora_v_forward(filled, images, alpha=alpha, locals=locals_, heads=heads)
        features = model.forward_features(images)
        torch.testing.assert_close(features.tokens, expected.visual_tokens, rtol=0, atol=1e-9)
        torch.testing.assert_close(model(images), expected.logits, rtol=0, atol=1e-9)
    assert [chosen.tolist() for chosen in features.selected] == [chosen.tolist() for chosen in expected.selected]


def test_lora_is_the_textbook_network_with_text():
    bert = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    model = create_model("lora", backbone="pvt_demo", alpha=4, hidden_dim=96, bert=bert).double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    ids, mask = oracle.golden_texts(3, 2)
    with torch.no_grad():
        layers, _ = model.text_model(ids, attention_mask=mask)
        features = sum(layers) / 4
        heads = model.vision_model.config.num_heads
        expected = oracle.lora_forward(model.state_dict(), images, features, alpha=4, locals=(1, 1, 1, 0), heads=heads)
        torch.testing.assert_close(model(images, ids, mask), expected.logits, rtol=0, atol=1e-9)


def test_attention_dropout_drops_probabilities():
    """With dropout p on the probabilities the output varies around the undropped one."""
    torch.manual_seed(0)
    block = FusionBlock(24, dropout_rate=0.0, attention_dropout_rate=0.0).double()
    block.attn.attn_dropout.p = 0.5
    x = torch.randn(1, 40, 24, dtype=torch.float64)
    draws = torch.stack([block.attn(x) for _ in range(500)])
    assert draws.std(0).min() > 0
    block.eval()
    deviation = (draws.mean(0) - block.attn(x)).abs() / draws.std(0)
    assert deviation.max() < 5 / 500**0.5


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"locals": [1, 1, 1, 1]}, (96, 96), "--locals.*fourth.*1 1 1 0"),
        ({"locals": [1, 1]}, (96, 96), "--locals.*four entries"),
        ({"alpha": 10}, (96, 96), "--alpha 10.*largest value that works is 9"),
        ({"alpha": 0}, (96, 96), "--alpha"),
        ({"alpha": 1}, (100, 96), "--input-size.*multiple of 32.*96"),
        ({"alpha": 1}, (16, 96), "--input-size.*at least 32"),
        ({"hidden_dim": 100}, (96, 96), "--hidden-dim 100.*96"),
        ({"backbone": "pvt_huge"}, (96, 96), "--backbone 'pvt_huge'.*pvt_small"),
    ],
)
def test_what_does_not_fit_is_named(settings, size, message):
    def build_and_run():
        model = create_model("lora_v", **({"backbone": "pvt_demo"} | settings))
        model(torch.zeros(1, 3, *size))

    with pytest.raises(UserError, match=message):
        build_and_run()
