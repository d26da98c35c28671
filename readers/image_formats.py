"""What Pillow's own way of opening refuses although it is valid: much metadata, and formats that need a package."""

import importlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from utils import mistake

PNG, JP2 = b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cjP  \r\n\x87\n"
METADATA = {  # parts of a file that no pixel depends on; colour profiles are not applied
    PNG: (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"),
    JP2: (b"uuid", b"uinf", b"xml ", b"jp2i"),
}
MAX_KEPT = 2**30  # bytes of a file that are copied


def without_metadata(file: BinaryIO) -> BinaryIO:
    """A picture's file without its metadata, of which Pillow accepts little.

    Pillow unpacks a PNG's texts and profiles, and bounds them because a few bytes may stand for gigabytes. Here they
    are not unpacked at all. A file of another format, or without metadata, is given back as it is, at its start.
    """
    file.seek(0)
    head = file.read(len(JP2))
    start = next((mark for mark in METADATA if head.startswith(mark)), None)
    kept: list[tuple[int, int]] = []
    if start is not None:
        parts = _png_chunks(file) if start == PNG else _jp2_boxes(file)
        kept, has_metadata = [(0, len(PNG) if start == PNG else 0)], False
        for name, begin, end in parts:
            if name in METADATA[start]:
                has_metadata = True
            elif kept[-1][1] == begin:
                kept[-1] = (kept[-1][0], end)
            else:
                kept.append((begin, end))
        if not has_metadata or sum(end - begin for begin, end in kept) > MAX_KEPT:
            kept = []
    content = b"".join(_cut(file, *part) for part in kept)
    file.seek(0)
    return io.BytesIO(content) if kept else file


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a PNG up to its end: name, first byte, and the byte after the last."""
    name, place, size = b"", len(PNG), file.seek(0, io.SEEK_END)
    while name != b"IEND" and place < size:
        file.seek(place)
        head = file.read(8).ljust(8, b"\0")
        name, end = head[4:], min(place + 12 + int.from_bytes(head[:4]), size)
        yield name, place, end
        place = end


def _jp2_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a JPEG 2000 file, likewise."""
    place, size = 0, file.seek(0, io.SEEK_END)
    while place < size:
        file.seek(place)
        length, name, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = long if length == 1 else length or size
        end = min(place + max(length, 8), size)
        yield name, place, end
        place = end


def _cut(file: BinaryIO, begin: int, end: int) -> bytes:
    """The bytes of a file from `begin` to before `end`."""
    file.seek(begin)
    return file.read(end - begin)


class Plugin(NamedTuple):
    """A format that Pillow reads with a package: its marks, and what to install, import and call."""

    name: str
    package: str
    module: str
    register: str  # the function that makes it known to Pillow; '' if the import does


AVIF = Plugin("AVIF", "pillow-avif-plugin", "pillow_avif", "")
HEIC = Plugin("HEIC", "pillow-heif", "pillow_heif", "register_heif_opener")
JPEG_XL = Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", "")
JPEG_XL_MARKS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def plugin_of(head: bytes) -> Plugin | None:
    """The plugin for a file that begins with these bytes; None for any other file."""
    if head.startswith(JPEG_XL_MARKS):
        return JPEG_XL
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4]), len(head))
    brands = {head[8:12], *(head[place : place + 4] for place in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return AVIF
    return HEIC if brands & HEIC_BRANDS else None


def load_plugin(file: BinaryIO, path: str | Path, expected: str) -> bool:
    """Imports the package that makes Pillow read a file.

    Returns:
        Whether there is such a package, so that another attempt may succeed.

    Raises:
        UserError: it is not installed.
    """
    file.seek(0)
    plugin = plugin_of(file.read(256))
    if plugin is None:
        return False
    try:
        module = importlib.import_module(plugin.module)
        if plugin.register:
            getattr(module, plugin.register)()
    except (ImportError, AttributeError, OSError) as error:
        found = f"{plugin.name}, which it reads with the package {plugin.package}"
        remedy = f"python -m pip install {plugin.package}, or store it as PNG"
        raise mistake(path, expected, found, remedy) from error
    file.seek(0)
    return True
