"""The textbook form: against the published numbers, and for what they do not cover against what must hold."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models import textbook
from tests import golden_inputs

GOLDEN = Path(__file__).parent / "golden"
FORWARD = {case["name"]: case for case in json.loads((GOLDEN / "forward.json").read_text())}
STATE_DICTS = json.loads((GOLDEN / "state_dict.json").read_text())


def golden_params(locals_, alpha, depth=None):
    """Filled parameters of LORA-V, with `depth` blocks a stage instead of the published number if given."""
    published = STATE_DICTS[f"LORA_V locals={''.join(map(str, locals_))} alpha=8"]
    length = 1 + sum(locals_) + alpha * (8 + 64 * locals_[0] + 32 * locals_[1] + 20 * locals_[2])
    shapes = {**published, "pos_embed": [1, length, 768]}
    if depth is not None:
        shapes = {name: shape for name, shape in shapes.items() if ".block" not in name or ".0." in name}
        blocks = {name: shape for name, shape in shapes.items() if ".block" in name}
        for block in range(1, depth):
            shapes |= {name.replace(".0.", f".{block}.", 1): shape for name, shape in blocks.items()}
    return golden_inputs.golden_fill(shapes)


def golden_output(name):
    case = FORWARD[name]
    params = golden_params(case["locals"], case["alpha"])
    if "grad_l2" in case:
        params = {name: value.requires_grad_() for name, value in params.items()}
    images = golden_inputs.golden_images(case["seed"], case["batch"], case["height"], case["width"])
    return case, params, textbook.lora_v_forward(params, images, alpha=case["alpha"], locals=case["locals"])


def assert_logits_and_patches(output, case):
    expected = torch.tensor(case["logits"], dtype=torch.float64)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-9)
    assert [chosen.tolist() for chosen in output.selected] == case["selected"]


def test_forward_is_the_published_one():
    case, _, output = golden_output("v192-a4")
    assert_logits_and_patches(output, case)
    assert list(output.visual_tokens.shape) == case["visual_tokens_shape"]
    assert output.visual_tokens.sum().item() == pytest.approx(case["visual_tokens_sum"], abs=1e-9)
    assert output.visual_tokens.abs().mean().item() == pytest.approx(case["visual_tokens_abs_mean"], abs=1e-12)


def test_loss_and_gradients_are_the_published_ones():
    case, params, output = golden_output("v128-grad")
    assert_logits_and_patches(output, case)
    loss = F.cross_entropy(output.logits, torch.tensor(case["targets"]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(case["loss"], abs=1e-9)
    loss.backward()
    norms = {name: value.grad.norm().item() for name, value in params.items()}
    # The fusion key bias has no gradient but rounding noise, hence an absolute tolerance.
    assert norms == pytest.approx(case["grad_l2"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6])
def test_scores_are_the_product_of_alternately_transposed_maps(depth):
    """The alternating form of docs/method.md, from the left: one row times one map at a time."""
    generator = torch.Generator().manual_seed(depth)
    maps = [torch.rand(2, 3, 13, 5, dtype=torch.float64, generator=generator).softmax(-1) for _ in range(depth)]
    factors = [attention if k % 2 else attention.mT for k, attention in enumerate(maps)]
    row = factors[-1][:, :, :1]
    for factor in reversed(factors[:-1]):
        row = row @ factor
    scores = textbook.reattention_scores(maps, last_stage=False)
    torch.testing.assert_close(scores, row[:, :, 0, 1:], rtol=1e-12, atol=0)


def test_scores_of_the_last_stage_are_the_plain_product():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 7, 7, dtype=torch.float64, generator=generator).softmax(-1) for _ in range(3)]
    expected = torch.einsum("bhi,bhij,bhjk->bhk", maps[2][:, :, 0], maps[1], maps[0])[..., 1:]
    torch.testing.assert_close(textbook.reattention_scores(maps, last_stage=True), expected, rtol=1e-12, atol=0)


def test_one_block_gives_no_scores_outside_the_last_stage():
    with pytest.raises(ValueError, match="at least 2 blocks, not 1"):
        textbook.reattention_scores([torch.ones(1, 1, 5, 2)], last_stage=False)


def transposed(params):
    """The parameters that treat rows as columns and columns as rows."""
    swapped = {name: value.mT if value.ndim == 4 else value for name, value in params.items()}
    for stage in (1, 2, 3, 4):
        name = f"vision_model.pos_embed{stage}"
        first = 1 if stage == 4 else 0
        grid = params[name][:, first:]
        side = int(grid.shape[1] ** 0.5)
        turned = grid.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
        swapped[name] = torch.cat([params[name][:, :first], turned], dim=1)
    return swapped


def test_an_upright_image_is_a_wide_one_transposed():
    """Non-square images and other depths are not in the golden files; a swap of height and width shows here."""
    locals_, alpha = [1, 0, 1, 0], 2
    params = golden_params([1, 1, 1, 0], alpha, depth=2)
    params["pos_embed"] = params["pos_embed"][:, : 3 + alpha * (8 + 64 + 20)]
    images = golden_inputs.golden_images(11, 2, 64, 96)
    wide = textbook.lora_v_forward(params, images, alpha=alpha, locals=locals_)
    upright = textbook.lora_v_forward(transposed(params), images.mT, alpha=alpha, locals=locals_)
    torch.testing.assert_close(upright.logits, wide.logits, rtol=0, atol=1e-11)
    for chosen_upright, chosen_wide, width in zip(upright.selected, wide.selected, (24, 6, 3), strict=True):
        height = width * 2 // 3
        assert torch.equal(chosen_upright, chosen_wide % width * height + chosen_wide // width)


def test_text_features_join_behind_the_visual_tokens():
    """Text tokens permuted with their positions change nothing: the last 30 positions are theirs, none is first."""
    params = golden_params([0, 0, 0, 0], 2, depth=1)
    shapes = {"l_proj.weight": (768, 48), "l_proj.bias": (768,), "pos_embed": (1, 17 + 30, 768)}
    params |= golden_inputs.golden_fill(shapes)
    images = golden_inputs.golden_images(12, 1, 32, 64)
    text = torch.randn(1, 30, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output = textbook.lora_forward(params, images, text, alpha=2, locals=[0, 0, 0, 0])
    params["pos_embed"] = torch.cat([params["pos_embed"][:, :17], params["pos_embed"][:, 17:].flip(1)], dim=1)
    flipped = textbook.lora_forward(params, images, text.flip(1), alpha=2, locals=[0, 0, 0, 0])
    torch.testing.assert_close(flipped.logits, output.logits, rtol=0, atol=1e-11)
    unmatched = textbook.lora_forward(params, images, text, alpha=2, locals=[0, 0, 0, 0])
    assert (unmatched.logits - output.logits).abs().max() > 1e-6


def test_golden_texts_have_their_mask_and_end_tokens():
    ids, mask = golden_inputs.golden_texts(5, 8)
    assert ids.shape == mask.shape == (8, 30)
    assert ids.dtype == mask.dtype == torch.long
    lengths = mask.sum(1)
    assert (ids[:, 0] == 101).all()
    assert (ids.gather(1, lengths[:, None] - 1) == 102).all()
    assert torch.equal(mask, (ids != 0).long())
