"""The optimizer's state in a checkpoint: what continues, and what is refused before a step is taken with it."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from readers.optimizer_state import load_optimizer_state
from utils import UserError


def take_step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()


def build(name="adamw", **settings):
    """A model and its optimizer, always with the same initial values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return model, create_optimizer_v2(model, opt=name, **({"lr": 0.1, "weight_decay": 0.05} | settings))


@pytest.mark.parametrize(
    "name",
    [
        *"adamw sgd adam lamb adafactor adan rmsprop lion novograd lookahead_adamw".split(),
        pytest.param("kronw", marks=pytest.mark.long),
    ],
)
def test_a_resumed_optimizer_goes_on_as_the_first_would(name):
    """Over more steps than Lookahead needs to look back once."""
    model, optimizer = build(name)
    for _ in range(4):
        take_step(model, optimizer)
    other, resumed = build(name)
    other.load_state_dict(model.state_dict())
    load_optimizer_state(resumed, copy.deepcopy(optimizer.state_dict()), "--resume x.pth")
    for _ in range(4):
        torch.manual_seed(1)  # KRON draws when it is to change its preconditioner
        take_step(model, optimizer)
        torch.manual_seed(1)
        take_step(other, resumed)
    for parameter, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_settings_stay_the_options_own():
    model, optimizer = build()
    take_step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group |= {"lr": 1e9, "weight_decay": "x", "maximize": True, "betas": None}
    _, resumed = build(weight_decay=0.3)
    load_optimizer_state(resumed, saved, "--resume x.pth")
    group = resumed.param_groups[1]
    assert (group["lr"], group["weight_decay"], group["maximize"], group["betas"]) == (0.1, 0.3, False, (0.9, 0.999))


def test_a_state_of_an_older_torch_loads():
    """Step counts were integers, and groups had fewer settings."""
    model, optimizer = build()
    take_step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = 1
    for group in saved["param_groups"]:
        for name in ("foreach", "capturable", "maximize", "differentiable", "fused", "decoupled_weight_decay"):
            del group[name]
        group["initial_lr"] = 0.1
    load_optimizer_state(optimizer, saved, "--resume x.pth")
    assert optimizer.state[model[0].weight]["step"].item() == 1
    take_step(model, optimizer)


def changed(state, path, value):
    """A state with the value at a path of keys replaced."""
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["param_groups"], 5, "a list of parameter groups"),
        (["param_groups"], [], r"groups of \[2, 2\] parameters, found \[\]"),
        (["param_groups", 0, "params"], "01", "a list params of numbers"),
        (["param_groups", 0, "params"], [0], r"groups of \[2, 2\] parameters, found \[1, 2\]"),
        (["param_groups", 0, "params"], [torch.ones(2)], "a list params of numbers"),
        (["param_groups", 0, "momentum"], 0.9, "'momentum' as well"),
        (["state"], None, "a state for each parameter"),
        (["state"], {}, "a state for each parameter"),
        (["state", 4], {}, "states of parameters 0 to 3"),
        (["state", "0"], {}, "states of parameters 0 to 3"),
        (["state", 0], [], "states of parameters 0 to 3"),
        (["state", 0], {"exp_avg": torch.zeros(4)}, "exp_avg, exp_avg_sq, step of parameter 0"),
        (["state", 0, "step"], -1, "parameter 0, step: expected a number from 0"),
        (["state", 0, "step"], torch.tensor(-1.0), "parameter 0, step: expected a number from 0"),
        (["state", 0, "step"], torch.ones(2), "parameter 0, step: expected a number from 0"),
        (["state", 0, "step"], "x", "parameter 0, step: expected a number from 0"),
        (["state", 0, "exp_avg"], torch.zeros(5), r"exp_avg: expected shape \[4\], found \[5\]"),
        (["state", 0, "exp_avg"], torch.zeros(1), r"exp_avg: expected shape \[4\], found \[1\]"),
        (["state", 0, "exp_avg"], None, r"exp_avg: expected shape \[4\], found None"),
        (["state", 0, "exp_avg"], [4], r"exp_avg: expected shape \[4\], found \[4\]"),
        (["state", 0, "exp_avg"], torch.zeros(4, dtype=torch.int64), r"exp_avg: expected shape \[4\]"),
        (["state", 0, "exp_avg"], torch.zeros(1).expand(2**40), "more than is stored"),
        (["state", 0, "exp_avg"], torch.zeros(4).to_sparse(), "sparse_coo"),
        (["state", 0, "x"], "y", "'x': expected a number or a tensor, found 'y'"),
        (["state", 0, 5], 5, "5: expected a number or a tensor"),
    ],
)
def test_a_state_that_would_fail_later_is_refused_now(path, value, message):
    model, optimizer = build()
    take_step(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UserError, match=rf"^--resume x\.pth: its optimizer.*{message}"):
        load_optimizer_state(optimizer, changed(before, path, value), "--resume x.pth")
    assert str(optimizer.state_dict()) == str(before)


def test_another_optimizer_is_named():
    model, optimizer = build("sgd")
    take_step(model, optimizer)
    _, other = build("adamw")
    with pytest.raises(UserError, match=r"its optimizer does not fit: .*'momentum' as well; check --opt"):
        load_optimizer_state(other, optimizer.state_dict(), "--resume x.pth")
