"""What a PyTorch file would do while it is read, found out without reading it.

`torch.load(weights_only=True)` runs no code, but its pickle may still fill the memory (compressed records), or keep the
processor busy for ever (a `set` of a terabyte of zeros, lists of lists of lists shared a billion times). A file that
`torch.save` wrote for a model does none of this, so that all of it can be refused.
"""

import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils import printable

ZIP_START = b"PK\x03\x04"
LEGACY_PICKLES = 5  # magic number, protocol, system, content, storage keys; then the storages
ENCODE = "_codecs encode"  # makes the bytes of a number of numpy from a text
ALLOWED = re.compile(
    r"collections OrderedDict|argparse Namespace|torch Size|torch device"
    r"|torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_tensor_v3|_rebuild_parameter)"
    r"|torch(\.cuda|\.storage)? \w+Storage|torch b?u?(float|int|complex|bool)\w*"
    r"|numpy\.(_core|core)\.multiarray scalar|numpy dtype"  # numbers, which readers.numpy_scalars makes
    rf"|{ENCODE}"
)

OTHER_GLOBALS = ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")  # never in a file of torch.save
CONTAINERS = ("EMPTY_LIST", "EMPTY_DICT", "REDUCE", "NEWOBJ")
FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
MAX_VALUES = 2**22  # values in a container, shared ones counted as often as they are reached
MAX_NUMBER_BYTES = 8
MAX_CONTENT = 100  # letters of a text that is looked at
MAX_TUPLE_VALUES = 10_000  # the same for a tuple, which may be a key: Python computes its hash each time


class RefusedPickle(ValueError):
    """A pickle with anything else than tensors, numbers, text and plain containers of them."""


@dataclass(eq=False, slots=True)
class Item:
    """A value on the pickle's stack: how many values it holds, itself included, and whether it is yet to be filled.

    Attributes:
        content: the name of a global, a short text, or those of the values in a short tuple; else None.
    """

    values: int = 1
    filling: bool = False
    content: str | tuple[Any, ...] | None = None


MARK = Item()
Stack = list[Item]


def check_pickle(path: Path) -> None:
    """Looks through a file of `torch.save`, of today's or the legacy format.

    Raises:
        RefusedPickle: it would make other objects, or needs more memory or time than its own size explains.
        ValueError, OSError, RuntimeError: it is damaged, or another kind of file.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) == ZIP_START:
            check_records(path)
            scan(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
            return
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            scan(file)


def check_records(path: Path) -> None:
    """Raises RefusedPickle for an archive that unpacks to more than its own size; torch.save stores uncompressed."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise RefusedPickle("it has compressed records, which torch.save does not write")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise RefusedPickle("its records are larger than the file")


def scan(file: BinaryIO) -> None:
    """Walks through one pickle, from its first opcode to STOP, counting what each value on its stack holds."""
    stack: Stack = []
    memo: dict[Any, Item] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in OTHER_GLOBALS or (name == "GLOBAL" and not ALLOWED.fullmatch(argument)):
            found = printable(argument.replace(" ", "."), 80) if isinstance(argument, str) else name
            raise RefusedPickle(f"it holds objects other than tensors, numbers and text ({found})")
        if name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = top(stack)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise ValueError("a pickle that refers to a value that it lacks")
            memo[argument].filling = False  # whole when it is reached again, so that it cannot hold itself
            stack.append(memo[argument])
        else:
            apply(opcode, argument, stack)


def apply(opcode: pickletools.OpcodeInfo, argument: Any, stack: Stack) -> None:
    """What an opcode does to the stack."""
    taken: Stack = []
    for kind in reversed(opcode.stack_before):
        if kind is pickletools.markobject:
            stack.pop()
        elif kind is pickletools.stackslice:
            while stack and stack[-1] is not MARK:
                taken.append(stack.pop())
        else:
            taken.append(top(stack))
            stack.pop()
    values = 1 + sum(item.values for item in taken)
    if values > (MAX_TUPLE_VALUES if opcode.name.startswith("TUPLE") else MAX_VALUES):
        raise RefusedPickle("its lists hold one another too often")
    if opcode.name == "REDUCE" and taken[-1].content == ENCODE:
        check_encoding(taken[0].content)
    if opcode.name in FILLS:
        target = taken.pop()
        if not target.filling:
            raise RefusedPickle("it changes a list that another holds")
        target.values = values
        stack.append(target)
    else:
        content = content_of(opcode.name, argument, taken)
        stack.extend(Item(values, opcode.name in CONTAINERS, content) for _ in opcode.stack_after)
    for item in taken:
        item.filling = False


def content_of(name: str, argument: Any, taken: Stack) -> str | tuple[Any, ...] | None:
    """What an opcode's result is known to be; see `Item`."""
    if name.startswith("TUPLE") and len(taken) <= MAX_NUMBER_BYTES:
        return tuple(item.content for item in reversed(taken))
    is_text = name == "GLOBAL" or name.endswith("UNICODE")
    return argument if is_text and isinstance(argument, str) and len(argument) <= MAX_CONTENT else None


def check_encoding(arguments: str | tuple[Any, ...] | None) -> None:
    """Raises RefusedPickle unless a text becomes the few bytes of a number, one byte a letter."""
    match arguments:
        case (str(text), "latin1") if len(text) <= MAX_NUMBER_BYTES:
            return
    raise RefusedPickle("it makes bytes that are not those of a number")


def top(stack: Stack) -> Item:
    """The last value on the stack; raises ValueError if there is none."""
    if not stack or stack[-1] is MARK:
        raise ValueError("a pickle whose stack lacks what an opcode takes")
    return stack[-1]
