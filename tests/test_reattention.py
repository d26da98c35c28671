"""Re-attention in row form against the textbook products of whole maps, and its memory."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import create_model, reattention, textbook
from models.attention import attend
from models.fusion import FusionBlock
from models.pvt import BACKBONES
from tests import golden_inputs


def random_maps(num_blocks, queries, keys, *, with_logsumexp=True, dtype=torch.float64):
    """Attention maps as the blocks leave them behind, and the same maps (B, heads, N, M) written out."""
    generator = torch.Generator().manual_seed(0)
    maps, written_out = [], []
    for _ in range(num_blocks):
        q = torch.randn(2, 3, queries, 8, dtype=torch.float64, generator=generator).to(dtype)
        k = torch.randn(2, 3, keys, 8, dtype=torch.float64, generator=generator).to(dtype)
        _, attention = attend(q, k, torch.zeros_like(k))
        maps.append(attention if with_logsumexp else attention._replace(logsumexp=None))
        written_out.append((q @ k.mT * 8**-0.5).softmax(-1))
    return maps, written_out


@pytest.mark.parametrize("num_blocks", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("last_stage", [False, True])
@pytest.mark.parametrize("block_elements", [1, 2**18])
@pytest.mark.parametrize("with_logsumexp", [True, False])
def test_row_form_is_the_textbook_product(num_blocks, last_stage, block_elements, with_logsumexp, monkeypatch):
    monkeypatch.setitem(reattention.BLOCK_ELEMENTS, "cpu", block_elements)
    maps, written_out = random_maps(num_blocks, 41, 41 if last_stage else 11, with_logsumexp=with_logsumexp)
    scores = reattention.class_token_scores(maps, last_stage=last_stage)
    expected = textbook.reattention_scores(written_out, last_stage=last_stage)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_logsumexp", [True, False])
def test_half_precision_scores_are_float32_and_near(dtype, with_logsumexp, monkeypatch):
    monkeypatch.setattr("models.attention.has_bfloat16", lambda: False)  # so that no map is kept
    maps, _ = random_maps(4, 41, 11, dtype=dtype, with_logsumexp=with_logsumexp)
    _, exact = random_maps(4, 41, 11)
    with torch.autocast("cpu", dtype=dtype):
        scores = reattention.class_token_scores(maps, last_stage=False)
    assert scores.dtype == torch.float32
    expected = textbook.reattention_scores(exact, last_stage=False).float()
    torch.testing.assert_close(scores, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("with_logsumexp", [True, False])
def test_images_and_heads_side_by_side_are_the_same(with_logsumexp):
    """On a CPU the images take turns; elsewhere and in a compiled graph all maps go side by side."""
    maps, _ = random_maps(3, 41, 11, with_logsumexp=with_logsumexp)
    together = reattention.chained_row([attention.flattened() for attention in maps], last_stage=False)
    scores = reattention.class_token_scores(maps, last_stage=False)
    torch.testing.assert_close(together.unflatten(0, (2, 3))[..., 1:], scores, rtol=1e-12, atol=0)


def test_no_gradient_passes_through_the_choice():
    maps, _ = random_maps(3, 20, 5)
    for attention in maps:
        attention.queries.requires_grad_(True)
        attention.keys.requires_grad_(True)
    assert not reattention.class_token_scores(maps, last_stage=False).requires_grad


@pytest.mark.parametrize("with_logsumexp", [True, False])
def test_no_step_makes_more_than_some_rows_of_a_map(with_logsumexp, monkeypatch):
    """Of 800 x 500 entries a head, no tensor that is made has more than a block's rows."""
    monkeypatch.setitem(reattention.BLOCK_ELEMENTS, "cpu", 1)
    maps, _ = random_maps(4, 800, 500, with_logsumexp=with_logsumexp)
    block = 3 * reattention.MIN_BLOCK_ROWS * 500
    with LargestTensor() as largest:
        reattention.class_token_scores(maps, last_stage=False)
    assert largest.elements == block


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


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
    filled = golden_inputs.golden_fill({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(filled)
    images = golden_inputs.golden_images(1, 2, *size)
    heads = model.vision_model.config.num_heads
    with torch.no_grad():
        expected = textbook.lora_v_forward(filled, images, alpha=alpha, locals=locals_, heads=heads)
        features = model.forward_features(images)
        torch.testing.assert_close(features.tokens, expected.visual_tokens, rtol=0, atol=1e-9)
        torch.testing.assert_close(model(images), expected.logits, rtol=0, atol=1e-9)
    assert [chosen.tolist() for chosen in features.selected] == [chosen.tolist() for chosen in expected.selected]


def test_lora_is_the_textbook_network_with_text():
    bert = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    model = create_model("lora", backbone="pvt_demo", alpha=4, hidden_dim=96, bert=bert).double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    ids, mask = golden_inputs.golden_texts(3, 2)
    with torch.no_grad():
        layers, _ = model.text_model(ids, attention_mask=mask)
        features = sum(layers) / 4
        heads = model.vision_model.config.num_heads
        expected = textbook.lora_forward(
            model.state_dict(), images, features, alpha=4, locals=(1, 1, 1, 0), heads=heads
        )
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
        ({"locals": [1, 1, 1, 1]}, (96, 96), "locals is .1, 1, 1, 1.: .*the fourth 0"),
        ({"locals": [1, 1]}, (96, 96), "locals .*four entries"),
        ({"alpha": 10}, (96, 96), "alpha 10 .*largest value that works is 9"),
        ({"alpha": 0}, (96, 96), "alpha is 0: expected a positive integer"),
        ({"tokens": "some"}, (96, 96), "tokens is 'some': expected one of both, global"),
        ({"alpha": 1}, (100, 96), "input_size .*multiple of 32; use 96 in place of 100"),
        ({"alpha": 1}, (96, 16), "input_size .*multiple of 32; use 32 in place of 16"),
        ({"hidden_dim": 100}, (96, 96), "hidden_dim is 100: .*; 96 is the largest below it"),
        ({"hidden_dim": 8}, (96, 96), "hidden_dim is 8: .*; 12 is the smallest"),
        ({"backbone": "pvt_huge"}, (96, 96), "backbone is 'pvt_huge': .*pvt_small"),
    ],
)
def test_what_does_not_fit_is_named(settings, size, message):
    def build_and_run():
        model = create_model("lora_v", **({"backbone": "pvt_demo"} | settings))
        model(torch.zeros(1, 3, *size))

    with pytest.raises(ValueError, match=f"^{message}"):
        build_and_run()


def test_the_fusions_heads_and_mlp_are_settings():
    torch.manual_seed(0)
    settings = {"backbone": "pvt_demo", "alpha": 2, "hidden_dim": 24, "fuse_mlp_dim": 40, "fuse_num_heads": 4}
    model = create_model("lora_v", **settings).double().eval()
    assert model.fusion_model.ffn.fc1.weight.shape == (40, 24)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    forms = {
        heads: textbook.lora_v_forward(
            model.state_dict(), images, alpha=2, locals=(1, 1, 1, 0), heads=(1, 2, 4, 6), fuse_num_heads=heads
        ).logits
        for heads in (4, 12)
    }
    torch.testing.assert_close(model(images), forms[4], rtol=0, atol=1e-9)
    assert not torch.allclose(forms[4], forms[12])
