"""The state of an optimizer from a checkpoint, checked against the optimizer that is to continue with it."""

from typing import Any

import torch
from torch import Tensor

from readers.checkpoint_fields import find_problem, is_number, plain
from utils import UserError, shown

STEP_COUNTS = ("step", "lookahead_step")  # that some optimizers keep in a group
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of their parameter's shape


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], source: str) -> None:
    """Loads moments and step counts; learning rate, weight decay and all other settings stay the optimizer's own.

    Args:
        saved: the optimizer's `state_dict()` in the checkpoint.
        source: flag and file, for messages.

    Raises:
        UserError: the state of another optimizer or of other parameters. The optimizer is left as it was.
    """
    own = optimizer.state_dict()
    check_groups(own["param_groups"], saved.get("param_groups"), source)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed = set()
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        needed = ADAM_STATE | ({"max_exp_avg_sq"} if optimizer.defaults["amsgrad"] else set())
    entries = plain(saved.get("state"))
    if not isinstance(entries, dict) or (needed and not entries):
        raise misfit(source, "a state for each parameter", shown(entries))
    state = {}
    for number, entry in entries.items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(entry, dict):
            raise misfit(source, f"states of parameters 0 to {len(parameters) - 1}", f"{shown(number)}: {shown(entry)}")
        entry = plain(entry)
        if needed - entry.keys():
            raise misfit(source, f"{', '.join(sorted(needed))} of parameter {number}", shown(list(entry)))
        for name, value in entry.items():
            place = f"{source}: its optimizer's parameter {number}"
            check_value(name, value, parameters[number], place, one_number=not needed)
        state[number] = entry | ({"step": torch.tensor(float(entry["step"]))} if needed else {})
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def check_groups(own: list[dict[str, Any]], groups: Any, source: str) -> None:
    """Raises UserError unless the groups hold the same parameters and no setting that the optimizer does not know.

    Some optimizers (LAMB) count their steps in the group: that number goes into the own group.
    """
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise misfit(source, "a list of parameter groups", shown(groups))
    groups = [plain(group) for group in groups]
    numbers = [group.get("params") for group in groups]
    if not all(isinstance(one, list) and all(type(number) is int for number in one) for one in numbers):
        raise misfit(source, "parameter groups with a list params of numbers", shown(numbers))
    expected = [group["params"] for group in own]
    if numbers != expected:
        raise misfit(source, f"groups of {shown([*map(len, expected)])} parameters", shown([*map(len, numbers)]))
    for group, own_group in zip(groups, own, strict=True):
        own_group |= {name: group[name] for name in STEP_COUNTS if is_step(group.get(name))}
        known = own_group.keys() | {"initial_lr"}
        unknown = [name for name in group if name not in known and not (group[name] is None or group[name] is False)]
        if unknown:
            raise misfit(source, f"the settings {', '.join(own_group)}", f"{shown(unknown[0])} as well")


def check_value(name: Any, value: Any, parameter: Tensor, where: str, *, one_number: bool) -> None:
    """Raises UserError for a value of the state that no optimizer works with.

    Args:
        one_number: whether a moment may be one number for the whole parameter, as NovoGrad has it.
    """
    if isinstance(value, Tensor) and (problem := find_problem(value)):
        raise UserError(f"{where}, {shown(name)}: expected a plain tensor of numbers, found {problem}")
    if name == "step" and not is_step(value):
        raise UserError(f"{where}, step: expected a number from 0, found {shown(value)}")
    if isinstance(value, list) and isinstance(name, str) and name not in MOMENTS:  # KRON has some
        for number, item in enumerate(value):
            check_value(f"{name} {number}", item, parameter, where, one_number=one_number)
        return
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    may_lack = value is None and name == "momentum_buffer"  # before SGD's first step
    fits = is_float and (value.shape == parameter.shape or (one_number and value.numel() == 1))
    if name in MOMENTS and not may_lack and not fits:
        found = list(value.shape) if is_float else value
        raise UserError(f"{where}, {name}: expected shape {list(parameter.shape)}, found {shown(found)}")
    if not isinstance(name, str) or not (value is None or isinstance(value, Tensor | bool) or is_number(value)):
        raise UserError(f"{where}, {shown(name)}: expected a number or a tensor, found {shown(value)}")


def is_step(value: Any) -> bool:
    """A number of steps, perhaps as a tensor."""
    if isinstance(value, Tensor):
        value = value.item() if not find_problem(value) and value.numel() == 1 else None
    return is_number(value) and value >= 0


def misfit(source: str, expected: str, found: str) -> UserError:
    """The error for the state of another optimizer."""
    return UserError(
        f"{source}: its optimizer does not fit: expected {expected}, found {found}; check --opt, --tunebert"
    )
