"""Hostile pickles and the files of torch.save that they stand in."""

import collections
import io
import os
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from tests.fuzzing import mutate

SENTINEL = Path("was-run")  # in the working directory: what code in a file would make


class RunsCode:
    """Pickled, it makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(SENTINEL),)


class HidesMethods:
    """Unpickled, it is an OrderedDict whose methods are hidden by attributes, which are numbers."""

    def __init__(self, **entries: Any):
        self.entries = entries

    def __reduce__(self):
        hidden = dict.fromkeys(("items", "keys", "values", "get"), 5)
        return collections.OrderedDict, (), hidden, None, iter(self.entries.items())


def write_torch(content: Any, *, zipped: bool) -> bytes:
    """A file of torch.save; a lambda, which cannot be pickled, is left out."""
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    except (
        pickle.PicklingError,
        AttributeError,
        TypeError,
        RuntimeError,
        RecursionError,
        NotImplementedError,
        ValueError,
    ):
        return b"\x80\x02]q\x00."
    return buffer.getvalue()


def mutate_records(rng: random.Random, content: bytes) -> bytes:
    """A zip file with one of its records mutated, taken out, doubled or compressed, and its checksums right again."""
    source = zipfile.ZipFile(io.BytesIO(content))
    records = [(info.filename, source.read(info)) for info in source.infolist()]
    number = rng.choice([0, 0, rng.randrange(len(records))])  # data.pkl is the first
    name, data = records[number]
    kind = rng.randrange(8)
    if kind == 0:
        del records[number]
    elif kind == 1:
        records.append(
            (rng.choice([name, name.upper(), "x/data.pkl", "data.pkl", "archive/code/x.py"]), mutate(rng, data))
        )
    elif kind == 2:
        records[number] = (name, data + bytes(10**7))
    else:
        records[number] = (name, mutate(rng, data) if kind < 6 else mutate_pickle(rng, data))
    buffer = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if kind == 2 or rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """A pickle with whole opcodes put in, taken out or given another argument."""
    try:
        starts = [position for _, _, position in pickletools.genops(data)]
    except (ValueError, IndexError):
        return mutate(rng, data)
    pieces = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        number = rng.randrange(len(pieces))
        kind = rng.randrange(5)
        if kind == 0:
            del pieces[number]
            pieces = pieces or [b"."]
        elif kind == 1:
            pieces.insert(number, rng.choice(OPCODES))
        elif kind == 2:
            pieces.insert(number, rng.choice(pieces))
        elif pieces[number][:1] in b"KMJ":
            pieces[number] = b"J" + struct.pack("<i", rng.choice([-1, 0, 1, 2**16, 2**31 - 1, -(2**31)]))
        else:
            pieces[number] = rng.choice(OPCODES)
    return b"".join(pieces)


def with_pickle(pickled: bytes, *, zipped: bool) -> bytes:
    """A file of torch.save with another pickle in it."""
    content = write_torch({}, zipped=zipped)
    if not zipped:
        assert content.count(b"\x80\x02}q\x00.") == 1
        return content.replace(b"\x80\x02}q\x00.", pickled)
    source = zipfile.ZipFile(io.BytesIO(content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info in source.infolist():
            archive.writestr(info.filename, pickled if info.filename.endswith("data.pkl") else source.read(info))
    return buffer.getvalue()


TERABYTE = b"c__builtin__\nbytearray\nq\1\x8a\6\0\0\0\0\0\1\x85R"
BOMBS = {  # pickles that torch.load(weights_only=True) itself takes
    "a terabyte of zeros": b"\x80\2" + TERABYTE + b".",
    "a set of zeros": b"\x80\2c__builtin__\nset\nq\2c__builtin__\nbytearray\nJ\0\0\0\x7f\x85R\x85R.",
    "a count of a terabyte of zeros": b"\x80\2ccollections\nCounter\nq\2" + TERABYTE + b"\x85R.",
    "a text that doubles": b"\x80\2c_codecs\nencode\nq\1X\1\0\0\0xX\3\0\0\0hex\x86R.",
    "a tuple of two tuples of two, as a key": b"\x80\2})q\1" + b"h\1\x86q\1" * 60 + b"Ns.",
    "a list of two lists of two": b"\x80\2]q\1" + b"](h\1h\1eq\1" * 60 + b"X\1\0\0\0x\x85R.",
    "a list filled after it was put in another": b"\x80\2]q\1]q\2\x86q\3h\1(h\2h\2e.",
    "a list that holds itself": b"\x80\2]q\1h\1a.",
    "a text that doubles, in bytes of a number": b"\x80\2c_codecs\nencode\nX\1\0\0\0xX\3\0\0\0hex\x86R.",
    "a dictionary that holds itself as a value": b"\x80\2}q\1X\1\0\0\0ah\1s.",
    "a list that is changed after another holds it": b"\x80\2]q\1](h\1h\1eh\1K\1a\x86.",
    "a tuple a million deep, as a key": b"\x80\2}N" + b"\x85" * 10**6 + b"Ns.",
}


OPCODES = [
    *[bytes([code]) for code in b"N\x88\x89)]}\x8f(tea.su1200bRQ\x85\x86\x87\x81"],
    b"\x80\x04", b"K\x05", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x05\0\0\0\0\x10",
    b"G" + bytes(8),
    b"X\1\0\0\0x", b"X\xff\xff\xff\x7fx", b"U\1x", b"q\0", b"q\1", b"h\0", b"h\1", b"h\xff", b"X\7\0\0\0storage",
    b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"ctorch\nSize\n", b"ctorch\ndevice\n",
    b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"cnumpy._core.multiarray\nscalar\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"X\6\0\0\0latin1", b"X\2\0\0\0f8",
    b"c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R", b"c__builtin__\nset\n", b"c_codecs\nencode\n",
    b"cos\nmkdir\nX\7\0\0\0was-run\x85R", b"cposix\nsystem\nX\7\0\0\0was-run\x85R", b"(X\7\0\0\0was-runios\nmkdir\n",
    b"})q\1" + b"h\1\x86q\1" * 40 + b"K\1s",  # a tuple of two tuples of two ..., as a key
    b"\x8c\2os\x8c\5mkdir\x93\x8c\7was-run\x85R",
]  # fmt: skip
