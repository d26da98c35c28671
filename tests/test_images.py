"""The image reader, on real files of every mode."""

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from readers.image_formats import plugin_of
from readers.images import is_blank, read_image, readings_differ
from utils import UserError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.RandomState(0).randint(0, 256, (24, 20, 3), dtype=np.uint8)
ALPHA = np.where(np.arange(480).reshape(24, 20) % 3 == 0, 0, 255).astype(np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, COLOURS).astype(np.uint8)


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def write_png(path: Path, size: tuple[int, int], bits: int, colour_type: int, rows: bytes, colour: bytes) -> Path:
    """A PNG made by hand, for bit depths that Pillow does not write.

    `rows` has a filter byte before each row, `colour` is the transparent one, or empty.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", colour), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(chunk(name, data) for name, data in chunks if data or name == b"IEND")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def write_tiff(path: Path, bits: int, data: bytes, size: tuple[int, int], *, order: str = "<") -> Path:
    """A grey TIFF made by hand."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: size[1], 279: len(data)}
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("P", "png"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("L", "gif"), ("P", "gif")]
    + [(mode, "tiff") for mode in ("L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "CMYK", "I", "F")]
    + [("L", "bmp"), ("RGB", "tga"), ("RGB", "ppm"), ("RGB", "jp2"), ("F", "pfm")],
)
def test_the_same_grey_picture_gives_the_same_pixels_in_every_mode(tmp_path, mode, suffix):
    image = Image.fromarray(GREY)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    path = save(image, tmp_path / f"image.{suffix}", **({"irreversible": False} if suffix == "jp2" else {}))
    assert (pixels(path) == GREY[..., None]).all()


@pytest.mark.parametrize(("mode", "suffix"), [("YCbCr", "im"), ("CMYK", "im"), ("CMYK", "tiff"), ("LAB", "tiff")])
def test_other_colour_spaces_are_converted(tmp_path, mode, suffix):
    image = Image.fromarray(np.full((4, 4, 3), (200, 60, 90), dtype=np.uint8)).convert("RGB").convert(mode)
    path = save(image, tmp_path / f"image.{suffix}")
    with Image.open(path) as stored:
        assert stored.mode == mode
    read = pixels(path).astype(int)
    assert abs(read - (200, 60, 90)).max() <= 3


def test_one_bit_pictures_are_black_and_white(tmp_path):
    image = Image.fromarray(GREY > 100)
    assert image.mode == "1"
    for suffix in ("png", "tiff", "bmp", "gif", "pbm"):
        assert (pixels(save(image, tmp_path / f"image.{suffix}")) == np.where(GREY > 100, 255, 0)[..., None]).all()


@pytest.mark.parametrize("suffix", ["png", "tiff", "tga", "webp", "ico"])
def test_transparent_pixels_become_white(tmp_path, suffix):
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    options = {"webp": {"lossless": True}, "ico": {"sizes": [image.size]}}.get(suffix, {})
    path = save(image, tmp_path / f"image.{suffix}", **options)
    assert (pixels(path) == ON_WHITE).all()


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    image = Image.new("RGBA", (2, 2), (100, 0, 255, 128))
    assert (pixels(save(image, tmp_path / "image.png")) == (177, 127, 255)).all()
    assert (pixels(save(Image.new("LA", (2, 2), (100, 128)), tmp_path / "grey.png")) == 177).all()


def test_premultiplied_alpha_is_undone(tmp_path):
    path = save(Image.new("RGBA", (2, 2), (50, 0, 100, 128)), tmp_path / "image.tiff")
    plain, premultiplied = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert plain in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(plain, premultiplied))
    assert abs(pixels(path).astype(int) - (177, 127, 227)).max() <= 1


def test_palette_transparency_by_index_and_by_entry(tmp_path):
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 0, 0, 0])
    image.putdata([0, 1, 2, 3])
    expected = [[10, 20, 30], [255, 255, 255], [70, 80, 90], [0, 0, 0]]
    for suffix in ("png", "gif"):
        assert pixels(save(image, tmp_path / f"image.{suffix}", transparency=1))[0].tolist() == expected
    mixed = save(image, tmp_path / "mixed.png", transparency=bytes([255, 0, 255, 128]))
    assert pixels(mixed)[0].tolist() == [*expected[:3], [127, 127, 127]]


def test_a_transparent_colour_without_alpha_channel_becomes_white(tmp_path):
    colours = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert pixels(save(colours, tmp_path / "rgb.png", transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [4, 5, 6]]
    grey = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    assert pixels(save(grey, tmp_path / "grey.png", transparency=8))[0].tolist() == [[7] * 3, [255] * 3]


def test_a_transparent_colour_of_other_bit_depths_becomes_white(tmp_path):
    two_bits = write_png(tmp_path / "2.png", (4, 1), 2, 0, b"\0\x1b", struct.pack(">H", 1))
    assert pixels(two_bits)[0, :, 0].tolist() == [0, 255, 170, 255]
    four_bits = write_png(tmp_path / "4.png", (2, 1), 4, 0, b"\0\x3a", struct.pack(">H", 3))
    assert pixels(four_bits)[0, :, 0].tolist() == [255, 170]
    one_bit = write_png(tmp_path / "1.png", (2, 1), 1, 0, b"\0\x40", struct.pack(">H", 0))
    assert pixels(one_bit)[0, :, 0].tolist() == [255, 255]
    grey = write_png(tmp_path / "16.png", (2, 1), 16, 0, struct.pack(">x2H", 0x1234, 0x1235), struct.pack(">H", 0x1234))
    assert pixels(grey)[0, :, 0].tolist() == [255, 0x12]
    row = struct.pack(">x6H", 0x1234, 0, 0, 0x9900, 0x100, 0x200)
    colours = write_png(tmp_path / "rgb.png", (2, 1), 16, 2, row, struct.pack(">3H", 0x1234, 0, 0))
    assert pixels(colours)[0].tolist() == [[255] * 3, [0x99, 1, 2]]


def test_sixteen_bit_grey_gives_back_its_upper_eight_bits(tmp_path):
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    paths = [save(deep, tmp_path / f"image.{suffix}") for suffix in ("png", "tiff", "pgm", "jp2")]
    big_endian = (GREY.astype(">u2") * 257).astype(">u2").tobytes()
    paths.append(write_tiff(tmp_path / "big.tiff", 16, big_endian, (16, 16), order=">"))
    paths.append(save(Image.fromarray(GREY.astype(np.int32) * 257), tmp_path / "int.tiff"))
    paths.append(save(Image.fromarray(GREY.astype(np.float32) * 257), tmp_path / "float.tiff"))
    for path in paths:
        assert (pixels(path) == GREY[..., None]).all(), path.name


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path):
    dark = Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))
    for suffix in ("png", "tiff", "pgm"):
        assert (pixels(save(dark, tmp_path / f"image.{suffix}")) == 0).all()


def test_twelve_bit_grey_is_spread_over_eight(tmp_path):
    path = write_tiff(tmp_path / "image.tiff", 12, bytes([0xFF, 0xF8, 0x00]), (2, 1))
    assert pixels(path)[0, :, 0].tolist() == [255, 128]


def test_floats_from_0_to_1_are_spread_over_eight_bits(tmp_path):
    unit = Image.fromarray(GREY.astype(np.float32) / 255)
    assert (pixels(save(unit, tmp_path / "unit.tiff")) == GREY[..., None]).all()


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, 1e9], [0.0, float("nan")]])
def test_values_without_a_known_white_are_an_error(tmp_path, values):
    path = save(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "image.tiff")
    with pytest.raises(UserError, match="grey values from 0 to 65535"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(frames[0], tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(path) == (255, 0, 0)).all()


def test_jpeg_and_cmyk_jpeg(tmp_path):
    image = Image.new("RGB", (16, 16), (200, 60, 90))
    for name, mode in (("rgb", "RGB"), ("cmyk", "CMYK")):
        path = save(image.convert(mode), tmp_path / f"{name}.jpg", quality=95)
        assert abs(pixels(path).astype(int) - (200, 60, 90)).max() <= 4


def test_the_content_counts_and_not_the_suffix(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(GREY).save(path, format="PNG")
    assert (pixels(path) == GREY[..., None]).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow on a cut TIFF, before it gives up
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix):
    path = save(Image.fromarray(COLOURS), tmp_path / f"image.{suffix}")
    content = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=rf"image\.{suffix}: expected an image .*, found .+: replace"):
            read_image(path)


def test_missing_empty_and_other_files_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"none\.png: expected an image .* No such file or directory: replace the file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match="an empty file"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(UserError, match="another kind of file"):
        read_image(str(tmp_path / "text.png"))
    with pytest.raises(UserError, match="embedded null byte"):
        read_image("a\0b.png")


def test_folders_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    errors = []

    def read_all():
        for path in (tmp_path, tmp_path / "pipe.png", Path("/dev/zero")):
            try:
                read_image(path)
            except UserError as error:
                errors.append(str(error))

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert ["a pipe or a device" in error for error in errors] == [False, True, True]


def test_a_postscript_program_is_not_run(tmp_path):
    path = save(Image.fromarray(COLOURS), tmp_path / "image.eps")
    with pytest.raises(UserError, match="EPS"):
        read_image(path)


@pytest.mark.parametrize("size", [(10_000, 8_950), (14_000, 14_000)])  # above Pillow's limit, and above twice the limit
@pytest.mark.parametrize("action", ["error", "ignore"])  # of Pillow's warning
def test_a_decompression_bomb_is_an_error(tmp_path, size, action):
    path = write_png(tmp_path / "bomb.png", size, 1, 0, b"\0", b"")
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(UserError, match=r"bomb\.png: expected at most [0-9,]+ pixels"):
            read_image(path)


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)


def chunk_file(path: Path, chunks: list[tuple[bytes, bytes]], *, at_end: bool = False) -> Path:
    """A PNG of COLOURS with further chunks before or after its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG")
    content = buffer.getvalue()
    place = content.index(b"IEND") - 4 if at_end else 33
    body = b"".join(struct.pack(">I", len(data)) + name + data + bytes(4) for name, data in chunks)
    for name, data in chunks:
        body = body.replace(name + data + bytes(4), name + data + struct.pack(">I", zlib.crc32(name + data)))
    path.write_bytes(content[:place] + body + content[place:])
    return path


LARGE = zlib.compress(bytes(1_500_000))
BOMB = zlib.compress(bytes(300_000_000))


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        (b"zTXt", b"prompt\0\0" + LARGE),
        (b"iTXt", b"prompt\0\1\0\0\0" + LARGE),
        (b"iCCP", b"profile\0\0" + LARGE),
        (b"zTXt", b"bomb\0\0" + BOMB),
        (b"tEXt", b"prompt\0" + b"x" * 70_000_000),
        (b"eXIf", b"x" * 2_000_000),
        (b"caBX", b"x" * 2_000_000),
    ],
    ids=["zTXt", "iTXt", "iCCP", "bomb", "tEXt", "eXIf", "private"],
)
def test_a_png_with_much_metadata_is_read(tmp_path, data, at_end):
    assert (pixels(chunk_file(tmp_path / "image.png", [data], at_end=at_end)) == COLOURS).all()


def test_an_animated_png_with_much_metadata_is_read(tmp_path):
    frames = [Image.new("RGBA", (20, 24), 0), Image.fromarray(COLOURS)]
    path = save(frames[0], tmp_path / "image.png", save_all=True, append_images=frames[1:], disposal=1)
    content, text = path.read_bytes(), b"zTXtprompt\0\0" + LARGE
    place = content.index(b"fdAT") - 4
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    path.write_bytes(content[:place] + chunk + content[place:])
    assert (pixels(path) == COLOURS).all()


def jpeg_with(marker: int, data: bytes) -> bytes:
    """A JPEG of COLOURS with sixty segments of 60,000 bytes."""
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "JPEG")
    segment = data + bytes(60_000 - len(data))
    segments = (b"\xff" + bytes([marker]) + struct.pack(">H", len(segment) + 2) + segment) * 60
    return buffer.getvalue()[:2] + segments + buffer.getvalue()[2:]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_other_formats_with_much_metadata_are_read(tmp_path):
    plain = tmp_path / "plain.jpg"
    Image.fromarray(COLOURS).save(plain)
    for marker, data in ((0xE1, b"Exif\0\0II*\0"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), (0xED, b""), (0xFE, b"")):
        (tmp_path / "image.jpg").write_bytes(jpeg_with(marker, data))
        assert (pixels(tmp_path / "image.jpg") == pixels(plain)).all()
    image, much = Image.fromarray(COLOURS), b"x" * 3_000_000
    assert (pixels(save(image, tmp_path / "a.webp", lossless=True, xmp=much, icc_profile=much)) == COLOURS).all()
    assert (pixels(save(image, tmp_path / "a.tiff", description="x" * 3_000_000, icc_profile=much)) == COLOURS).all()
    gif = image.quantize(16)
    assert (pixels(save(gif, tmp_path / "a.gif", comment=much)) == np.asarray(gif.convert("RGB"))).all()
    content = save(image, tmp_path / "a.jp2", irreversible=False).read_bytes()
    place = content.index(b"jp2c") - 4
    (tmp_path / "a.jp2").write_bytes(
        content[:place] + struct.pack(">I4s", 8 + len(much), b"uuid") + much + content[place:]
    )
    assert (pixels(tmp_path / "a.jp2") == COLOURS).all()


@pytest.mark.parametrize(
    ("head", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pillow-heif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "pillow-avif-plugin"),
        (b"\xff\x0a\xfa\x1f", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl-plugin"),
    ],
)
def test_a_format_that_needs_a_package_names_it(tmp_path, head, package):
    plugin = plugin_of(head + bytes(100))
    assert plugin is not None
    assert plugin.package == package
    try:
        __import__(plugin.module)
    except ImportError:
        (tmp_path / "image").write_bytes(head + bytes(100))
        if plugin.name != "AVIF":  # which Pillow's own wheels read
            with pytest.raises(UserError, match=rf"{plugin.name}, which it reads .*: python -m pip install {package}"):
                read_image(tmp_path / "image")


@pytest.mark.parametrize("head", [b"", b"\0\0\0\x18ftypisom\0\0\0\0isommp42", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"])
def test_other_files_need_no_package(head):
    assert plugin_of(head) is None


FACE = np.full((16, 16, 4), 0, dtype=np.uint8)
FACE[4:12, 4:12] = (200, 60, 90, 255)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "avif"])
@pytest.mark.parametrize("empty", [1, 3])
def test_of_an_animation_that_fades_in_the_first_frame_with_something_is_read(tmp_path, suffix, empty):
    clear, face, later = Image.new("RGBA", (16, 16), 0), Image.fromarray(FACE), Image.new("RGBA", (16, 16), "blue")
    options = {
        "gif": {"disposal": 2},
        "png": {"disposal": 1},
        "webp": {"lossless": True},
        "avif": {"quality": 100, "subsampling": "4:4:4"},
    }
    clears = [clear] * (empty - 1)
    path = tmp_path / f"image.{suffix}"
    clear.save(path, save_all=True, append_images=[*clears, face, later], duration=100, **options[suffix])
    expected = np.where(FACE[..., 3:] > 0, FACE[..., :3], 255).astype(int)
    assert abs(pixels(path) - expected).max() <= (8 if suffix == "avif" else 2)
    assert not is_blank(read_image(path))
    assert len(read_image(path, reading="published").getcolors()) < 256  # the first frame, whatever is read of it


def test_pictures_of_one_colour_are_known_as_blank(tmp_path):
    line = np.full((40, 40, 4), 0, dtype=np.uint8)
    line[3, 5:30] = 255  # white on transparency
    assert is_blank(read_image(save(Image.fromarray(line), tmp_path / "white.png")))
    line[3, 6] = (0, 0, 0, 255)
    assert not is_blank(read_image(save(Image.fromarray(line), tmp_path / "dot.png")))
    assert is_blank(read_image(save(Image.new("RGB", (1, 1)), tmp_path / "1.png")))


def test_an_animation_cut_off_after_an_empty_first_frame_is_still_read(tmp_path):
    frames = [Image.new("RGBA", (16, 16), 0), Image.effect_noise((16, 16), 99).convert("RGBA")]
    path = save(frames[0], tmp_path / "image.png", save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"fdAT") + 20])
    assert (pixels(path) == 255).all()


def published(path: Path) -> np.ndarray:
    return np.asarray(read_image(path, reading="published"))


def first_bytes(array: np.ndarray) -> np.ndarray:
    """The first 3 * W * H bytes of an array (H, W, C) as RGB of W x H."""
    height, width = array.shape[:2]
    return np.frombuffer(array.tobytes()[: 3 * width * height], np.uint8).reshape(height, width, 3)


def test_the_published_reading_of_colour_grey_palettes_and_bits(tmp_path):
    colours, palette = Image.fromarray(COLOURS), Image.fromarray(COLOURS).quantize(32)
    assert (published(save(colours, tmp_path / "rgb.png")) == COLOURS).all()
    assert (published(save(Image.fromarray(GREY), tmp_path / "grey.png")) == GREY[..., None]).all()
    assert (published(save(palette, tmp_path / "palette.png")) == np.asarray(palette.convert("RGB"))).all()
    bits = save(Image.fromarray(GREY > 100), tmp_path / "bits.png")
    assert (published(bits) == np.where(GREY > 100, 255, 0)[..., None]).all()


def test_the_published_reading_of_four_channels_is_the_first_bytes(tmp_path):
    alpha = np.dstack([COLOURS, ALPHA])
    assert (published(save(Image.fromarray(alpha), tmp_path / "rgba.png")) == first_bytes(alpha)).all()
    ink = Image.fromarray(COLOURS).convert("CMYK")
    assert (published(save(ink, tmp_path / "ink.tiff")) == first_bytes(np.asarray(ink))).all()
    path = save(Image.fromarray(COLOURS).quantize(32), tmp_path / "palette.png", transparency=3)
    with Image.open(path) as image:
        assert (published(path) == first_bytes(np.asarray(image.convert("RGBA")))).all()


def test_the_published_reading_of_grey_with_alpha_is_an_error_that_names_the_file(tmp_path):
    path = save(Image.fromarray(GREY).convert("LA"), tmp_path / "la.png")
    with pytest.raises(UserError, match=r"la\.png: expected a picture that the published code reads, found mode LA"):
        read_image(path, reading="published")


def test_the_published_reading_of_sixteen_bits_is_the_first_bytes(tmp_path):
    deep = GREY.astype(np.int32) * 257
    path = save(Image.fromarray(deep.astype(np.uint16)), tmp_path / "deep.png")
    assert (published(path) == first_bytes(np.stack([deep] * 3, axis=-1))).all()


def test_images_that_the_two_readings_see_differently(tmp_path):
    colours = Image.fromarray(COLOURS)
    pictures = {
        "rgb.png": (colours, False),
        "grey.png": (Image.fromarray(GREY), False),
        "palette.png": (colours.quantize(32), False),
        "rgb.jpg": (colours, False),
        "rgba.png": (colours.convert("RGBA"), True),
        "la.png": (Image.fromarray(GREY).convert("LA"), True),
    }
    for name, (picture, differs) in pictures.items():
        path = save(picture, tmp_path / name)
        assert readings_differ(path, read_image(path)) == differs, name


def start_files() -> list[bytes]:
    """One real file of each common format, to be damaged."""
    files = []
    for suffix in ("PNG", "GIF", "JPEG", "WEBP", "TIFF", "BMP", "TGA", "ICO", "PPM", "JPEG2000"):
        buffer = io.BytesIO()
        Image.fromarray(COLOURS).save(buffer, suffix)
        files.append(buffer.getvalue())
    return files


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.sampled_from(start_files()),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
    keep=st.floats(0, 1),
)
def test_a_damaged_file_gives_a_picture_or_a_user_error(tmp_path, content, damage, keep):
    content = bytearray(content)
    for place, new in damage:
        start = int(place * len(content))
        content[start : start + len(new)] = new
    path = tmp_path / "damaged"
    path.write_bytes(content[: int(len(content) * keep) + 1])
    message = str(path)
    try:
        assert read_image(path).mode == "RGB"
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert message.isprintable()
