"""Attention against the library's, and the maps that are written out and kept in bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from models import attention, create_model
from models.attention import attend
from models.reattention import class_token_scores


@pytest.fixture
def written_out(monkeypatch):
    """A CPU with instructions for bfloat16, and small blocks of rows."""
    monkeypatch.setattr(attention, "has_bfloat16", lambda: True)
    monkeypatch.setattr(attention, "BLOCK_ELEMENTS", 3 * 11 * 7)


def random_input(keys=11, dtype=torch.bfloat16):
    """Queries of 41 tokens, keys and values, of two images and three heads."""
    return [torch.randn(2, 3, length, 16).to(dtype) for length in (41, keys, keys)]


def test_attention_is_the_librarys():
    q, k, v = random_input(dtype=torch.float64)
    output, made = attend(q, k, v)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-14)
    torch.testing.assert_close(made.logsumexp, (q @ k.mT * 16**-0.5).logsumexp(-1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("with_logsumexp", [True, False])
def test_products_beyond_float16_give_scores_of_numbers(with_logsumexp):
    """Queries and keys whose products are 102,400: a quarter of it is within float16's 65,504."""
    tokens = [torch.full((2, 3, length, 16), 80.0, dtype=torch.float16) for length in (41, 11, 11)]
    made = attend(*tokens)[1]
    maps = [made if with_logsumexp else made._replace(logsumexp=None)] * 3
    scores = class_token_scores(maps, last_stage=False)
    torch.testing.assert_close(scores, torch.full_like(scores, 41 / 11**2), rtol=0.01, atol=0)


@pytest.mark.parametrize("is_kept", [True, False])
def test_attention_in_rows_is_the_librarys_with_its_gradient(is_kept, written_out, monkeypatch):
    if not is_kept:
        monkeypatch.setattr(attention, "KEPT_ELEMENTS", 0)
    torch.manual_seed(0)
    rounded = [one.requires_grad_() for one in random_input()]
    exact = [one.detach().float().requires_grad_() for one in rounded]
    output, made = attend(*rounded)
    expected = F.scaled_dot_product_attention(*exact)
    assert (len(made.kept), made.logsumexp) == (2 * is_kept, None)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.02)
    weights = torch.randn_like(output)
    found = torch.autograd.grad(output, rounded, weights)
    for one, other in zip(found, torch.autograd.grad(expected, exact, weights.float()), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=0.02 * other.abs().max().item())


@pytest.mark.parametrize("last_stage", [False, True])
def test_a_kept_map_gives_the_scores_of_one_made_again(last_stage, written_out):
    torch.manual_seed(0)
    maps = [attend(*random_input(41 if last_stage else 11))[1] for _ in range(5)]
    made_again = [one._replace(kept=()) for one in maps]
    assert all(len(blocks) > 3 for one in maps for blocks in one.kept)
    scores = class_token_scores(maps, last_stage=last_stage)
    expected = class_token_scores(made_again, last_stage=last_stage)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("images", [2, 1, 0])
def test_a_stage_keeps_a_bounded_part_of_its_maps(images, written_out, monkeypatch):
    """Of each block those of the first images, as many as fit; the others are made again."""
    torch.manual_seed(0)
    model = create_model("lora_v", backbone="pvt_demo", alpha=2, hidden_dim=24).bfloat16().eval()
    stage, pictures, elements = model.vision_model.forward_stage, torch.randn(3, 3, 64, 64).bfloat16(), 257 * 5
    with torch.no_grad():
        _, _, whole = stage(pictures, 0)
        monkeypatch.setattr(attention, "KEPT_ELEMENTS", (3 + images) * elements)
        _, _, limited = stage(pictures, 0)
    assert [len(one.kept) for one in (*whole, *limited)] == [3, 3, 3, images]
    scores, expected = (class_token_scores(maps, last_stage=False) for maps in (limited, whole))
    torch.testing.assert_close(scores, expected, rtol=0.01, atol=0)


def test_only_bfloat16_on_a_cpu_that_has_it_is_written_out(written_out, monkeypatch):
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert not attend(*random_input(dtype=dtype))[1].kept
    learning = [one.requires_grad_() for one in random_input()]
    monkeypatch.setattr(attention, "GRADIENT_ELEMENTS", 3 * 41 * 11 - 1)
    assert attend(*learning)[1].logsumexp is not None
    with torch.no_grad():
        assert attend(*learning)[1].kept
        monkeypatch.setattr(attention, "has_bfloat16", lambda: False)
        assert attend(*learning)[1].logsumexp is not None
