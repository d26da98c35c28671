"""Numbers of numpy in a checkpoint, read as numbers of Python: nothing of numpy is called by the file."""

import re
import struct
from collections.abc import Callable
from typing import Any

CODES = {  # of numpy's types, in the struct module's words; longer ones are not read
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip
CODE = re.compile(r"[<>=|]?([bifu]\d)")


class NumberType:
    """Stands for `numpy.dtype` in a file: the type of one number."""

    def __init__(self, code: str, align: Any = False, copy: Any = True):
        match = CODE.fullmatch(code) if isinstance(code, str) else None
        if match is None or match[1] not in CODES:
            raise ValueError("a number of numpy of a type that is not read")
        self.format, self.order = CODES[match[1]], "<"

    def __setstate__(self, state: Any) -> None:
        """Takes the order of the bytes from what numpy saves of a type, `(3, '<', None, None, None, -1, -1, 0)`."""
        order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        if order not in ("<", ">", "=", "|") or state[2:5] != (None, None, None):
            raise ValueError("a number of numpy of a type that is not read")
        self.order = ">" if order == ">" else "<"


def read_number(number_type: Any, content: Any) -> bool | int | float:
    """Stands for numpy's constructor of a number in a file: its type and its bytes."""
    if type(number_type) is not NumberType or not isinstance(content, bytes):
        raise ValueError("a number of numpy that is none")
    try:
        return struct.unpack(number_type.order + number_type.format, content)[0]
    except struct.error as error:
        raise ValueError(f"a number of numpy with {len(content)} bytes") from error


STAND_INS: list[tuple[Callable[..., Any], str]] = [  # for torch.serialization.safe_globals
    (NumberType, "numpy.dtype"),
    (read_number, "numpy._core.multiarray.scalar"),
    (read_number, "numpy.core.multiarray.scalar"),  # of numpy 1
]
