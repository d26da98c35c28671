"""Hostile image files: small ones of every format that Pillow writes, stubs of those that it only reads, mutated."""

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets import build_transform
from readers.images import read_image
from tests.fuzzing import mutate

FORMATS = [  # Pillow's name, mode, options
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    ("PNG", "RGB", {"save_all": True, "append_images": True}),
    ("PNG", "P", {"transparency": 0}),
    *[("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")],
    ("JPEG", "RGB", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    *[("GIF", mode, {}) for mode in ("L", "P")],
    ("GIF", "P", {"save_all": True, "append_images": True, "transparency": 1}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGBA", {"save_all": True, "append_images": True}),
    *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
    *[("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB")],
    *[("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4")],
    ("TIFF", "RGB", {"save_all": True, "append_images": True}),
    *[("ICO", "RGBA", {"bitmap_format": name, "sizes": [(16, 16)]}) for name in ("png", "bmp")],
    *[("PPM", mode, {}) for mode in ("1", "L", "RGB", "F")],
    *[("TGA", mode, {"compression": name}) for mode in ("L", "P", "RGB", "RGBA") for name in (None, "tga_rle")],
    *[("PCX", mode, {}) for mode in ("1", "L", "P", "RGB")],
    *[("SGI", mode, {}) for mode in ("L", "RGB", "RGBA")],
    *[("DDS", "RGBA", {"pixel_format": name}) for name in (None, "DXT1", "DXT5", "BC2", "BC3")],
    ("DDS", "RGB", {"pixel_format": "BC5"}),
    *[("JPEG2000", mode, {"no_jp2": raw}) for mode in ("L", "RGB") for raw in (True, False)],
    *[(name, "RGB", {}) for name in ("AVIF", "IM", "MPO", "QOI", "DIB", "EPS", "ICNS")],
    *[(name, "1", {}) for name in ("MSP", "XBM")],
    ("BLP", "P", {}),
    ("IM", "P", {}),
    ("SPIDER", "F", {}),
]
STARTS = [  # of formats that Pillow reads and does not write
    b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x10\0\0\0\x10\0\x08\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b"END".ljust(2720),
    struct.pack("<IHHHHHHI", 4096, 0xAF11, 3, 16, 16, 8, 3, 70).ljust(128, b"\0") + b"\x10\0\0\0\xfa\xf1" + bytes(4000),
    struct.pack("<IHHHHHHI", 4096, 0xAF12, 3, 16, 16, 8, 3, 70).ljust(128, b"\0") + b"\x10\0\0\0\xfa\xf1" + bytes(4000),
    b"\x59\xa6\x6a\x95" + struct.pack(">7I", 16, 16, 8, 256, 1, 0, 0) + bytes(300),
    b"/* XPM */\nstatic char *x[] = {\n\"2 2 2 1\",\n\"a c #ff0000\",\n\"b c None\",\n\"ab\",\n\"ba\"};\n",
    b"P7 332\n#XVVERSION\n#END_OF_COMMENTS\n4 4 255\n" + bytes(16),
    b"\0\0\2\0\1\0\x10\x10\0\0\0\0\0\0\x68\4\0\0\x16\0\0\0"
    + struct.pack("<IiiHHIIiiII", 40, 16, 32, 1, 32, 0, 1024, 0, 0, 0, 0) + bytes(1088),
    b"\xb1\x68\xde\x3a" + struct.pack("<II", 12, 0) + b"\x0a\5\1\x08\0\0\0\0\x0f\0\x0f\0" + bytes(300),
    b"FTU\0" + struct.pack("<iiiiiiii", 1, 16, 16, 1, 1, 0, 36, 128) + bytes(200),
    struct.pack(">IIIIII", 28, 2, 16, 16, 4, 0x47494D50) + struct.pack(">I", 10) + bytes(1100),
    b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x10\0\x10\0\x60\0\0\0\0\0\0\0\1\0\x09\0" + bytes(40),
    b"\x80\xe8\0\0".ljust(424, b"\0") + bytes(600),
    b"Image type: Greyscale\r\n" + bytes(200),
    b"\0\0\0\0\0\0\0\4" + bytes(2048 - 8) + b"PCD_" + bytes(5000),
    b"\x1c\x03\x3c\0\1\0" + b"\x1c\x03\x3c\0\4" + bytes(50),
    b"\0\0\1\xba\x21\0\1\0\1\x80\0\0\0\0\1\xb3\1\0\x10\x13" + bytes(50),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n",
    b"GRIB" + bytes(30), b"BUFR" + bytes(30), b"\x89HDF\r\n\x1a\n" + bytes(30), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
]  # fmt: skip


@cache
def valid_images() -> list[bytes]:
    """A small picture in each format and mode."""
    pixels = np.random.RandomState(0).randint(0, 256, (16, 16, 3), dtype=np.uint8)
    contents = []
    for name, mode, options in FORMATS:
        image = Image.fromarray(pixels)
        image = image.convert("L").convert(mode) if mode in ("I", "F", "1") else image
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
        options = dict(options)
        if options.get("compression") == "group4":
            image = image.convert("1")
        if "append_images" in options:
            options["append_images"] = [image.rotate(90), image.rotate(180)]
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        contents.append(buffer.getvalue())
    return contents + STARTS


def make_image(rng: random.Random, folder: Path) -> None:
    """One file: valid, mutated, mutated inside its structure, or put together of two."""
    content = rng.choice(valid_images())
    kind = rng.randrange(12)
    if kind == 0:
        content = content[: rng.randrange(len(content))] + rng.choice(valid_images())[rng.randrange(64) :]
    elif content.startswith(b"\x89PNG") and kind < 9:
        content = mutate_png(rng, content)
    elif kind > 1:
        content = mutate(rng, content)
    (folder / rng.choice(["image.png", "image", "image.jpg"])).write_bytes(content)


def mutate_png(rng: random.Random, content: bytes) -> bytes:
    """A PNG with changed chunks whose checksums are right again, so that the change arrives where it hurts."""
    chunks, position = [], 8
    while position < len(content):
        [length] = struct.unpack_from(">I", content, position)
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    for _ in range(rng.choice([1, 1, 2, 4])):
        number = rng.randrange(len(chunks))
        name, data = chunks[number]
        kind = rng.randrange(6)
        if kind == 0:
            name = rng.choice(
                [b"tRNS", b"PLTE", b"IDAT", b"fdAT", b"acTL", b"fcTL", b"zTXt", b"iCCP", b"eXIf", b"IEND"]
            )
            data = rng.choice([data, bytes(rng.choice([0, 1, 6, 26])), zlib.compress(bytes(rng.choice([10, 2**22])))])
        elif kind == 1:
            chunks.insert(rng.randrange(len(chunks) + 1), (name, data))
        elif kind == 2 and len(chunks) > 1:
            del chunks[number]
            continue
        elif kind == 3 and name == b"IDAT":
            data = zlib.compress(mutate(rng, bytes(2000)))
        else:
            data = mutate(rng, data)
        chunks[number] = (name, data)
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return content[:8] + b"".join(body)


TRANSFORM = build_transform(False, input_size=64)


def read_any_image(folder: Path) -> None:
    """The picture as the network sees it: a finite tensor (3, 64, 64)."""
    [path] = folder.iterdir()
    image = read_image(path)
    assert image.mode == "RGB"
    tensor = TRANSFORM(image)
    assert tensor.shape == (3, 64, 64)
    assert torch.isfinite(tensor).all()
