"""Position embeddings of a backbone that was trained at another image size."""

import pytest
import torch
import torch.nn.functional as F

from models import create_model
from runtime.weights import fit_position_embeddings


@pytest.fixture(scope="module")
def own():
    torch.manual_seed(0)
    return create_model("lora_v", backbone="pvt_demo", alpha=4, hidden_dim=24).vision_model.state_dict()


def trained_at_448(own):
    """The backbone's state with grids of twice the side."""
    state = dict(own)
    for stage, (side, dim) in enumerate(zip((112, 56, 28, 14), (32, 64, 128, 192), strict=True), start=1):
        state[f"pos_embed{stage}"] = torch.randn(1, side * side + (stage == 4), dim)
    return state


def test_other_grids_are_interpolated_and_said(own):
    state = trained_at_448(own)
    fitted, said = fit_position_embeddings(state, own)
    assert all(fitted[name].shape == value.shape for name, value in own.items())
    for stage, side in ((1, 56), (3, 14)):
        old = state[f"pos_embed{stage}"].reshape(1, 2 * side, 2 * side, -1).permute(0, 3, 1, 2)
        # Half the side by bilinear interpolation without aligned corners is the mean of each four cells.
        expected = F.avg_pool2d(old, 2).flatten(2).transpose(1, 2)
        torch.testing.assert_close(fitted[f"pos_embed{stage}"], expected)
    assert said.startswith("; interpolated bilinearly: pos_embed1 from 112 x 112 to 56 x 56, pos_embed2 ")
    assert "pos_embed4 from 14 x 14 to 7 x 7" in said


def test_the_class_tokens_slot_in_stage_4_is_not_interpolated(own):
    state = trained_at_448(own)
    fitted, _ = fit_position_embeddings(state, own)
    assert torch.equal(fitted["pos_embed4"][:, 0], state["pos_embed4"][:, 0])
    cells = state["pos_embed4"][:, 1:].reshape(1, 7, 2, 7, 2, 192).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(fitted["pos_embed4"][:, 1:], cells)


def test_the_same_grid_is_left_alone(own):
    fitted, said = fit_position_embeddings(own, own)
    assert said == ""
    assert all(fitted[name] is value for name, value in own.items())


def test_half_precision_stays(own):
    state = dict(own) | {"pos_embed3": torch.randn(1, 28 * 28, 128).half()}
    assert fit_position_embeddings(state, own)[0]["pos_embed3"].dtype == torch.float16


@pytest.mark.parametrize(
    "value",
    [torch.zeros(shape) for shape in ((1, 785, 64), (1, 900, 32), (2, 900, 64), (900,), (1, 0, 64), (1, 64))],
)
def test_what_is_no_square_grid_of_the_same_width_is_left_alone(own, value):
    for one in (value, value.long()):
        fitted, said = fit_position_embeddings(dict(own) | {"pos_embed2": one}, own)
        assert fitted["pos_embed2"] is one
        assert said == ""
