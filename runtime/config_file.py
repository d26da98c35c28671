"""Config files: Python with `cfg = dict(...)`, each entry checked as its flag would be."""

import argparse
import os
import types
from typing import Any

from models import PVT_NAMES
from runtime.option_types import Parser, boolean, device_name, model_name
from utils import UserError, printable, shown

MAX_CONFIG_BYTES = 2**20
TEXT_TYPES = (None, model_name, device_name)  # the types of flags that take text


def read_config(path: str) -> dict[str, Any]:
    """The options of a config file: its `cfg` dictionary or, without one, its own variables.

    The file is Python code, as in the published configs; mmcv 1.x reads it if it is installed, else mmengine.
    """
    try:
        from mmcv import Config

        settings = {}
    except ImportError:
        from mmengine.config import Config

        settings = {"lazy_import": False}  # else an import in the config makes it another kind of file
    source = f"--config {printable(path)}"
    if not os.path.isfile(path):
        raise UserError(f"{source}: no such file; the published command names configs/pvt/pvt_small.py")
    if not path.endswith(".py") or os.path.getsize(path) > MAX_CONFIG_BYTES:
        raise UserError(f"{source}: expected a Python file, *.py, of at most {MAX_CONFIG_BYTES:,} bytes")
    try:
        values = Config.fromfile(path, **settings)
        values = {key: value for key, value in values.items() if not isinstance(value, types.ModuleType)}
    except (Exception, SystemExit) as error:  # a config is a program: anything may go wrong in it
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        raise UserError(f"{source}: cannot be read as a config: {reason}") from error
    if set(values) == {"cfg"}:
        values = values["cfg"]
    if not isinstance(values, dict):
        raise UserError(f"{source}: cfg is {shown(values)}: expected a dictionary of options")
    return dict(values)


def check_config(parser: Parser, values: dict[str, Any], path: str) -> dict[str, Any]:
    """Passes each value of a config file through its flag's own type and choices.

    A `model` that is a backbone is the backbone, as for `option_types.ModelName`.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    checked = {key: config_value(actions, key, value, printable(path)) for key, value in values.items()}
    if (name := checked.get("model")) in PVT_NAMES:
        del checked["model"]
        if checked.setdefault("backbone", name) != name:
            raise UserError(
                f"--config {printable(path)}: model {name} and backbone {checked['backbone']} both name the backbone: "
                "give one of them"
            )
    return checked


def config_value(actions: dict[str, argparse.Action], key: str, value: Any, path: str) -> Any:
    """One entry of a config file, checked as its flag would be on the command line."""
    action = actions.get(key)
    if action is None:
        found = f"unknown key {shown(key)}"
        raise UserError(f"--config {path}: {found}; its keys are the flags of --help with underscores")
    if value is None and action.default is None:
        return None
    is_switch = action.nargs == 0 or action.type is boolean
    if is_switch:
        if not isinstance(value, bool):
            raise UserError(f"--config {path}: {key} is {shown(value)}: expected True or False")
        return value
    items = list(value) if isinstance(value, list | tuple) else [value]
    takes_list = action.nargs is not None
    if takes_list != isinstance(value, list | tuple) or (isinstance(action.nargs, int) and len(items) != action.nargs):
        expected = f"a list of {action.nargs} values" if takes_list else "one value"
        raise UserError(f"--config {path}: {key} is {shown(value)}: expected {expected}")
    items = [config_item(action, item, f"--config {path}: {key} is {shown(value)}") for item in items]
    return items if takes_list else items[0]


def config_item(action: Any, item: Any, where: str) -> Any:
    """One value of an entry: a number where the flag takes a number, text where it takes text, one of its choices."""
    wants_text = action.type in TEXT_TYPES
    if isinstance(item, bool) or isinstance(item, str) != wants_text or not isinstance(item, str | int | float):
        raise UserError(f"{where}: expected {'text' if wants_text else 'a number'}, found {type(item).__name__}")
    if action.choices and item not in action.choices:
        raise UserError(f"{where}: expected one of {', '.join(map(str, action.choices))}")
    if wants_text and not item.isprintable():
        raise UserError(f"{where}: expected text on one line, without control characters")
    if action.type is None:
        return item
    try:
        return action.type(item if wants_text else repr(item))
    except (ValueError, OverflowError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{where}: {printable(error)}") from error
