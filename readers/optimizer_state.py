"""The state of an optimizer and a schedule from a checkpoint, checked against those that are to continue with it."""

from typing import Any

import torch
from timm.scheduler.plateau_lr import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from readers.checkpoint_fields import find_problem, is_number, plain
from utils import UserError, shown

STEP_COUNTS = ("step", "lookahead_step")  # that some optimizers keep in a group
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of their parameter's shape


SMALLEST_NOISE = 1e-3  # limit of the rate's noise, in its deviations: below it drawing would take forever
RENAMED = {"t_mul": "cycle_mul", "decay_rate": "cycle_decay"}  # settings of cosine and tanh in timm until 0.4


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], source: str, *, published: nn.Module | None = None
) -> None:
    """Loads moments and step counts; learning rate, weight decay and all other settings stay the optimizer's own.

    Args:
        saved: the optimizer's `state_dict()` in the checkpoint.
        source: flag and file, for messages.
        published: the network, if the file is the published script's: its groups hold the parameters that do not
            learn as well, and rates, weight decay, betas and other numbers are then the file's.

    Raises:
        UserError: the state of another optimizer or of other parameters. The optimizer is left as it was.
    """
    own = optimizer.state_dict()
    if published is not None:
        saved = without_frozen(optimizer, published, saved, source)
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
    if published is not None:
        for own_group, group in zip(own["param_groups"], saved["param_groups"], strict=True):
            take_settings(own_group, plain(group), source)
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def without_frozen(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any], source: str
) -> dict[str, Any]:
    """The state as an optimizer of the learning parameters alone has it.

    The published script put all parameters into its groups, biases and vectors first, then matrices, each in the
    network's order. The frozen text encoder's and BERT's pooler never got a gradient. A state with other groups is
    returned as it is.
    """
    groups = saved.get("param_groups")
    whole = groups_of_all(model, len(optimizer.param_groups))
    numbers = (
        [list(group["params"]) if is_group(group) else None for group in groups] if isinstance(groups, list) else []
    )
    start = [sum(map(len, whole[:number])) for number in range(len(whole))]
    expected = [list(range(first, first + len(group))) for first, group in zip(start, whole, strict=True)]
    if not whole or numbers != expected:
        return saved
    entries = plain(saved.get("state"))
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    position = {id(parameter): number for number, parameter in enumerate(own)}
    parameters = [parameter for group in whole for parameter in group]
    state: dict[int, Any] = {}
    for number, entry in entries.items() if isinstance(entries, dict) else ():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise misfit(source, f"states of parameters 0 to {len(parameters) - 1}", shown(number))
        if id(parameters[number]) in position:
            state[position[id(parameters[number])]] = entry
    own_groups = optimizer.state_dict()["param_groups"]
    renumbered = [plain(group) | {"params": one["params"]} for group, one in zip(groups or [], own_groups, strict=True)]
    return {"state": state, "param_groups": renumbered}


def groups_of_all(model: nn.Module, count: int) -> list[list[nn.Parameter]]:
    """All parameters in timm's groups: one, or those without weight decay and those with it; else no groups."""
    vectors: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (vectors if parameter.ndim <= 1 or name.endswith(".bias") else matrices).append(parameter)
    return {1: [list(model.parameters())], 2: [vectors, matrices]}.get(count, [])


def is_group(value: Any) -> bool:
    """A dictionary with a list of parameters."""
    return isinstance(value, dict) and isinstance(plain(value).get("params"), list)


def take_settings(own: dict[str, Any], group: dict[str, Any], source: str) -> None:
    """Puts the numbers of a file's group in place of the optimizer's own; switches stay as they are."""
    for name, value in own.items():
        if name not in group or name == "params" or name in STEP_COUNTS:
            continue
        given = group[name]
        if isinstance(value, tuple):
            fits = isinstance(given, list | tuple) and len(given) == len(value)
            if not fits or not all(is_number(one) and 0 <= one < 1 for one in given):
                raise misfit(source, f"{name} of {len(value)} numbers from 0 to below 1", shown(given))
            own[name] = tuple(given)
        elif is_number(value):
            if not is_number(given) or given < 0:
                raise misfit(source, f"a number from 0 as {name}", shown(given))
            own[name] = given


def load_schedule(scheduler: Scheduler, saved: dict[str, Any], source: str, *, epochs: int) -> None:
    """Loads the settings of a schedule from a checkpoint of the published script.

    Args:
        saved: the scheduler's `state_dict()`, of today's timm or of the published script's.
        epochs: how many are tried, so that no epoch fails later.

    Raises:
        UserError: a value that the schedule cannot work with. The schedule is left as it was.
    """
    own, saved = scheduler.state_dict(), plain(saved)
    for old, new in RENAMED.items():
        if old in saved and old not in own and new in own:
            saved[new] = saved[old]
    for name, value in own.items():
        if name in saved and name != "metric" and not fits_setting(name, saved[name], value):
            raise UserError(
                f"{source}: lr_scheduler, {name}: expected a value such as {shown(value)}, found {shown(saved[name])}"
            )
    taken = {name: saved[name] for name in own if name in saved and name != "metric"}
    noise = {**own, **taken}
    is_endless = (
        noise.get("noise_range_t") is not None and noise["noise_pct"] < abs(noise["noise_std"]) * SMALLEST_NOISE
    )
    scheduler.load_state_dict(own | taken)
    if is_endless or not gives_rates(scheduler, epochs):
        scheduler.load_state_dict(own)
        raise UserError(f"{source}: lr_scheduler: expected a schedule of {epochs} epochs, found one that has no rates")


def fits_setting(name: str, given: Any, own: Any) -> bool:
    """Whether a schedule's setting is of the kind that the schedule has, and of the same length if it is a list."""
    if name == "noise_range_t":
        many = isinstance(given, list | tuple) and len(given) > 1 and all(map(is_number, given))
        return given is None or is_number(given) or many
    if isinstance(own, list):
        return isinstance(given, list | tuple) and len(given) == len(own) and all(map(is_number, given))
    if isinstance(own, bool | str):
        return type(given) is type(own) and given == own
    if isinstance(own, int) and name == "noise_seed":
        return type(given) is int and abs(given) < 2**62
    return own is None or is_number(given)


def gives_rates(scheduler: Scheduler, epochs: int) -> bool:
    """Whether the schedule has a rate from 0 for each epoch."""
    if isinstance(scheduler, PlateauLRScheduler):
        return True
    try:
        return all(is_number(rate) and rate >= 0 for epoch in range(epochs) for rate in scheduler._get_lr(epoch))
    except (ArithmeticError, ValueError, TypeError, IndexError):
        return False


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
