"""What the command line is made of: its parser and the types of its values."""

import argparse
import re
from typing import Any, NoReturn

from models import PVT_NAMES, get_network
from utils import UserError

LARGEST = 10**15
SMALLEST_CONCENTRATION = 1e-6  # numpy's beta distribution refuses what rounds to 0


class Parser(argparse.ArgumentParser):
    """Takes underscores and hyphens alike, no abbreviations, and raises UserError for a wrong flag or value."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_args([with_hyphens(argument) for argument in args or ()], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def with_hyphens(argument: str) -> str:
    """`--output_dir=a_b` to `--output-dir=a_b`; anything that is not a flag stays as it is."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def boolean(text: str) -> bool:
    """True or false as people write it, for flags that take a value."""
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return value


class ModelName(argparse.Action):
    """`--model pvt_small` names the backbone, as published: the script says which network; else the network."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        setattr(namespace, "backbone" if value in PVT_NAMES else self.dest, value)


def model_name(text: str) -> str:
    """One of the project's networks, timm/ and a name of timm, or a backbone."""
    if text in PVT_NAMES:
        return text
    try:
        return get_network(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def device_name(text: str) -> str:
    """A kind of device, or one GPU by its number."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda, cuda:NUMBER or mps, found {text!r}")
    return text


def positive_int(text: str) -> int:
    """An integer from 1."""
    return bounded(int(text), low=1)


def natural(text: str) -> int:
    """An integer from 0."""
    return bounded(int(text), low=0)


def non_negative(text: str) -> float:
    """A finite number from 0."""
    return bounded(float(text), low=0)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = non_negative(text)
    if not value:
        raise argparse.ArgumentTypeError("expected a number above 0, found 0")
    return value


def rate(text: str) -> float:
    """A probability below 1."""
    value = bounded(float(text), low=0)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, found {text}")
    return value


def share(text: str) -> float:
    """A number above 0, at most 1."""
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1, found {text}")
    return value


def concentration(text: str) -> float:
    """The parameter of a beta distribution, or 0 for off."""
    value = non_negative(text)
    if 0 < value < SMALLEST_CONCENTRATION:
        raise argparse.ArgumentTypeError(f"expected 0 or a number of at least {SMALLEST_CONCENTRATION}, found {text}")
    return value


WEIGHTINGS = ("none", "balanced", "effective")


def class_weight(text: str) -> str | float:
    """How classes are weighted, or the weight of one of them."""
    if text in WEIGHTINGS:
        return text
    try:
        return positive_float(text)
    except ValueError:
        expected = f"expected {', '.join(WEIGHTINGS)} or a positive number for each class"
        raise argparse.ArgumentTypeError(f"{expected}, found {text!r}") from None


def bounded(value: Any, *, low: float) -> Any:
    """The value itself if it is a number from `low` to a quadrillion."""
    if not low <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"expected a number of at least {low} and at most {LARGEST:.0e}")
    return value
