"""Hostile inputs for the readers, shared by the suite and by `tests/fuzz.py`.

A case is a folder of files that depends on the reader, a seed and a number alone. It must end in a result or in a
UserError of one short line.
"""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from utils import UserError

MAX_MESSAGE = 2000  # characters of an error, paths included
MAGIC = [bytes([value]) * width for value in (0x00, 0xFF, 0x7F, 0x80, 0x01) for width in (1, 2, 4, 8)] + [
    struct.pack(order + kind, value) for order in "<>" for kind in "HIQ" for value in (1, 255, 2**15, 2**16 - 1)
]


class Reader(NamedTuple):
    """How to make a case in an empty folder, and how to read it and check what comes of it."""

    make: Callable[[random.Random, Path], None]
    read: Callable[[Path], None]


def readers() -> dict[str, Reader]:
    """The readers by the names of the command line."""
    from tests import fuzzing_checkpoints, fuzzing_images, fuzzing_own_data, fuzzing_tables, fuzzing_texts

    return {
        "annotations": Reader(fuzzing_texts.make_annotations, fuzzing_texts.read_annotations),
        "own-data": Reader(fuzzing_own_data.make_own_data, fuzzing_own_data.read_own_data),
        "tables": Reader(fuzzing_tables.make_table, fuzzing_tables.read_any_table),
        "images": Reader(fuzzing_images.make_image, fuzzing_images.read_any_image),
        "config": Reader(fuzzing_texts.make_config, fuzzing_texts.read_any_config),
        "checkpoints": Reader(fuzzing_checkpoints.make_checkpoint, fuzzing_checkpoints.read_any_checkpoint),
    }


def make_case(name: str, seed: int, number: int, folder: Path) -> None:
    """Writes case `number` of a reader into an empty folder."""
    readers()[name].make(random.Random(f"{name} {seed} {number}"), folder)


def read_case(name: str, folder: Path) -> str:
    """Reads a case: "result" or "UserError"; any other exception is a finding, as is a message of another form."""
    try:
        readers()[name].read(folder)
    except UserError as error:
        message = " ".join(str(error).split())  # as main prints it
        assert message.isprintable(), f"cannot be printed: {message!r}"
        assert 10 < len(message) <= MAX_MESSAGE + len(str(folder)), f"{len(message)} characters: {message}"
        return "UserError"
    return "result"


def mutate(rng: random.Random, content: bytes) -> bytes:
    """The content with a few bytes changed, cut, repeated, moved or put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        start = rng.randrange(len(data) + 1)
        # Headers stand in front, so that changes there say more.
        start = min(start, rng.choice([len(data), 16, 64, 256]))
        end = min(len(data), start + rng.choice([1, 2, 4, 8, 32, 256, 4096]))
        piece = rng.choice(MAGIC)
        kind = rng.randrange(9)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start : start + len(piece)] = piece
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            del data[rng.randrange(len(data) + 1) :]
        elif kind == 4:
            data[start:start] = data[start:end] * rng.choice([1, 2, 50])
        elif kind == 5:
            data[start:start] = piece
        elif kind == 6:
            data[start:end] = rng.randbytes(end - start)
        elif kind == 7:
            other = rng.randrange(len(data) + 1)
            data[other:other] = data[start:end]
        else:
            data += rng.randbytes(rng.choice([1, 100]))
    return bytes(data)


TEXTS = [
    "",
    " ",
    "a",
    "cats",
    "0.png",
    "..",
    "/",
    "../x",
    "a/b",
    "\0",
    "\n",
    "\r",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    "é" * 9,
]
TEXTS += ["x" * 300, "y" * 5000, "NaN", "[PAD]", "None", "a ||| b", "-1", "__class__", "https://x", "%s{0}", "🙂"]
NUMBERS = [
    0,
    1,
    -1,
    7,
    8,
    2**31,
    -(2**63),
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("inf"),
    float("nan"),
]


def value(rng: random.Random, depth: int = 3) -> Any:
    """Any plain value: numbers, texts, and lists and dictionaries of them."""
    kind = rng.randrange(10 if depth else 6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice([None, True, False])
    if kind < 8:
        return [value(rng, depth - 1) for _ in range(rng.choice([0, 1, 2, 4, 20]))]
    return {rng.choice(TEXTS): value(rng, depth - 1) for _ in range(rng.choice([0, 1, 2, 4]))}


def change(rng: random.Random, content: Any) -> Any:
    """A value somewhere in nested lists and dictionaries replaced, taken out or repeated; changes it in place."""
    if rng.random() < 0.05 or not isinstance(content, dict | list) or not content:
        return value(rng)
    key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
    kind = rng.randrange(8)
    if kind == 0:
        del content[key]
    elif kind == 1 and isinstance(content, list):
        content.append(content[key])
    elif kind == 1:
        content[rng.choice([*TEXTS, *content])] = content[key]
    elif kind == 2:
        content[key] = value(rng)
    else:
        content[key] = change(rng, content[key])
    return content
