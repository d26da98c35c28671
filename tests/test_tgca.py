"""TGCA-PVT: against the numbers of the published implementation, and its fast form against the textbook's."""

import json

import pytest
import torch

from models import create_model, textbook
from models.tgca import TopicAttention, group_topics, inverse_transform
from tests.golden_inputs import (
    assert_golden_forward,
    assert_golden_gradients,
    assert_golden_names,
    golden_fill,
    golden_inputs,
    golden_model,
    golden_texts,
)
from tests.test_golden import GOLDEN

FORWARD = {case["name"]: case for case in json.loads((GOLDEN / "tgca_forward.json").read_text())}
STATE_DICTS = json.loads((GOLDEN / "tgca_state_dict.json").read_text())


@pytest.mark.parametrize("name", [name for name in FORWARD if not name.endswith("-grad")])
def test_forward_is_the_published_one(name):
    case = FORWARD[name]
    model, inputs = golden_model(case), golden_inputs(case)
    with torch.no_grad():
        logits = model(*inputs)
        features = model.vision_model(inputs[0], None, group_topics(inputs[-1], inputs[0]))
    assert_golden_forward(case, logits, features)


def test_gradients_are_the_published_ones():
    assert_golden_gradients(FORWARD["t96-a2-soft-grad"])


@pytest.mark.parametrize("key", STATE_DICTS)
def test_names_shapes_and_their_order(key):
    assert_golden_names(key, STATE_DICTS[key])


def small(name="tgca_pvt_v", **settings):
    """A narrow network in float64, in evaluation mode, with the values of the golden files' recipe."""
    settings = {"backbone": "pvt_demo", "alpha": 2, "hidden_dim": 48, "fuse_dropout_rate": 0.0} | settings
    model = create_model(name, **settings).double().eval()
    model.load_state_dict(golden_fill({name: tuple(value.shape) for name, value in model.state_dict().items()}))
    with torch.no_grad():  # without this one logit of the topic tokens outweighs all others and hides mistakes
        for stage in (1, 2, 3):
            if hasattr(model.vision_model, f"global_proj{stage}"):
                model.vision_model.get_submodule(f"global_proj{stage}")[2].weight.mul_(0.1)
    return model


def images_of(count, height=64, width=64, seed=0):
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


BERT = {"num_hidden_layers": 4, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
TEXTBOOK_SIZES = {"heads": (1, 2, 4, 6), "reductions": (8, 4, 2, 1)}


@pytest.mark.parametrize("locals_", [(1, 1, 1, 0), (0, 1, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("topics", [[0, 0, 0], [5, 9, 5], [1, 2, 3]])
def test_logits_and_gradients_are_those_of_the_textbook_form(locals_, topics):
    model, images, topics = small(locals=locals_), images_of(3, 64, 96), torch.tensor(topics)
    params = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    output = textbook.tgca_pvt_v_forward(params, images, topics, alpha=2, locals=locals_, **TEXTBOOK_SIZES)
    logits = model(images, topics)
    torch.testing.assert_close(logits, output.logits, rtol=0, atol=1e-11)
    logits.square().sum().backward()
    output.logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        expected = params[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11, msg=name)


def test_the_whole_network_is_that_of_the_textbook_form():
    model, topics = small("tgca_pvt", bert=BERT, locals=(0, 1, 1, 0)), torch.tensor([4, 4, 1])
    images, words = images_of(3), golden_texts(0, 3)
    params = model.state_dict()
    with torch.no_grad():
        features = model.encode_text(*words)
        output = textbook.tgca_pvt_forward(
            params, images, features, topics, alpha=2, locals=(0, 1, 1, 0), **TEXTBOOK_SIZES
        )
        torch.testing.assert_close(model(images, *words, topics), output.logits, rtol=0, atol=1e-11)
        by_features = model(images, topics=topics, text_features=features)
    torch.testing.assert_close(by_features, output.logits, rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_ablation_differs_in_the_stages_maximum_alone():
    """It has the same weights, and the same logits without local tokens or if the maximum is left out."""
    for tokens in ("both", "global"):
        whole, plain = (small(name, bert=BERT, tokens=tokens) for name in ("tgca_pvt", "tgca_pvt_lora_locals"))
        inputs = images_of(2), *golden_texts(0, 2), torch.tensor([1, 1])
        logits = [model(*inputs) for model in (whole, plain)]
        assert ((logits[0] - logits[1]).abs().max() > 1e-3) == (tokens == "both")
        whole.vision_model.refine = lambda chosen: chosen
        torch.testing.assert_close(whole(*inputs), logits[1], rtol=0, atol=0)


@torch.no_grad()
def test_without_topics_each_sticker_is_alone():
    model, images = small(), images_of(3)
    alone = torch.cat([model(image[None], torch.tensor([7])) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-11)
    torch.testing.assert_close(model(images, torch.tensor([3, 1, 2])), alone, rtol=0, atol=1e-11)
    assert (model(images, torch.tensor([1, 1, 1])) - alone).abs().max() > 1e-3


@torch.no_grad()
def test_only_the_stickers_of_the_topic_matter_not_their_order_or_copies():
    model, images = small(), images_of(4)
    pair = model(images[:2], torch.tensor([5, 5]))
    order = torch.tensor([3, 1, 2, 0])
    shuffled = model(images[order], torch.tensor([9, 2, 9, 2]))
    torch.testing.assert_close(shuffled[[3, 1]], pair, rtol=0, atol=1e-11)
    doubled = model(images[[0, 0, 1, 1]], torch.tensor([0, 0, 0, 0]))
    torch.testing.assert_close(doubled[[0, 2]], pair, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "topics", [torch.tensor([1, 2]), torch.tensor([[1, 2, 3]]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True] * 3)]
)
def test_topics_that_are_not_an_integer_an_image_are_an_error(topics):
    with pytest.raises(ValueError, match="^topics: expected 3 integers, one an image, found the shape"):
        small()(images_of(3), topics)


def test_the_inverse_transform_is_that_of_irfft2():
    parts = torch.randn(2, 2, 3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.fft.irfft2(torch.complex(*parts), s=(8, 8), norm="ortho")
    torch.testing.assert_close(inverse_transform(*parts), expected, rtol=0, atol=1e-14)


def test_what_is_not_used_does_not_learn_and_all_else_gets_a_gradient():
    for settings in ({"locals": (0, 0, 0, 0)}, {"locals": (0, 1, 0, 0)}, {"tokens": "local"}, {"tokens": "none"}):
        model = small(**settings)
        model(images_of(2), torch.tensor([1, 1])).sum().backward()
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert "vision_model.conv4.weight" in learning
        assert "fusion_model.attn.norm.weight" not in learning


def test_mixed_precision_changes_little_and_keeps_the_spectrum_in_float32():
    model, images, topics = small().float(), images_of(2).float(), torch.tensor([1, 1])
    chosen = model.vision_model(images, None, group_topics(topics, images)).selected
    exact = model(images, topics, chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images, topics, chosen)
        assert model.vision_model.patch_embed1.fft(images.bfloat16()).dtype == torch.float32
    logits.float().sum().backward()
    assert (logits - exact).abs().max() < 0.1 * exact.abs().max()


def test_weights_of_the_first_token_are_the_row_of_both_maps():
    attention = TopicAttention(24, 12, 0.0).double()
    x, groups = images_of(3, 8, 24).flatten(1, 2), group_topics(torch.tensor([2, 1, 2]), torch.empty(3))
    weights = attention.weights(x, groups)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 12, dtype=torch.float64))
    values = attention.value(x).unflatten(2, (12, -1)).transpose(1, 2)  # (B, heads, N, d)
    expected = attention.out((weights.unsqueeze(2) @ values).flatten(1))
    torch.testing.assert_close(attention(x, groups), expected)
