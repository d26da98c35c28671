"""The image reader: any picture that Pillow reads, as RGB on white or as the published code reads it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from readers.files import open_regular
from readers.image_formats import load_plugin, without_metadata
from readers.published_images import as_published
from utils import UserError, mistake, reason

EXPECTED = "an image that Pillow reads"
REMEDY = "replace the file, or take its entry out of the data"

RGB_ON_WHITE, PUBLISHED = READINGS = ("rgb-on-white", "published")  # the values of --image-reading

# Pillow warns of a picture above its limit and refuses one above twice the limit; both are refused here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

INTEGER_WHITES = (255, 2**16 - 1)  # white in pictures of 32-bit integers, which do not say themselves
FLOAT_WHITES = (1, *INTEGER_WHITES)
RAW_WHITES = {"I;12": 2**12 - 1}
GREY_STEPS = {"L;2": 85, "L;4": 17}  # how Pillow spreads grey of few bits over 0-255
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF", "JXL", "FLI")  # formats whose frames show one picture, unlike pages
MAX_FRAMES = 1000  # that are looked at for one that is not blank
LOOKED_AT = 16  # rows and columns of the first look at whether a picture is blank


def read_image(path: str | Path, least_size: tuple[int, int] | None = None, reading: str = RGB_ON_WHITE) -> Image.Image:
    """Reads a picture as RGB with 8 bits a channel.

    Transparency is put on white, of an animation the first frame is taken that is not of one colour, of 16 bits the
    upper eight, so that the same picture gives the same pixels in whatever mode it was stored. EXIF orientation is
    not applied.

    Args:
        reading: one of READINGS; `published` reads as `readers.published_images` says, of an animation the first frame.
        least_size: (height, width). A JPEG is then decoded at the smallest of 1/8, 1/4, 1/2 and full scale that is
            no smaller than that on either side, so at full scale unless it is twice as large on both. Its pixels are
            block means taken from the frequencies, not those of a full picture resized; the time is saved in
            decoding. Pictures in other formats are read as ever.

    Raises:
        UserError: the file is missing, empty, truncated, no image, not a regular file, above Pillow's limit on the
            number of pixels, or EPS, for which Pillow would run Ghostscript on a program that a stranger wrote.
    """
    with _opened(path, least_size) as image:
        return as_rgb(image, path, reading)


def as_rgb(image: Image.Image, path: str | Path = "a picture", reading: str = RGB_ON_WHITE) -> Image.Image:
    """A picture that Pillow has opened as `read_image` gives it; `path` is what an error calls it.

    Raises:
        UserError: grey values that are none, or a picture on which the published code ends in an error.
    """
    if reading == PUBLISHED:
        return as_published(image, path)
    colour = image.info.get("transparency")
    picture = _frame_to_rgb(image, path)
    if image.format in ANIMATIONS and not image.tell() and is_blank(picture):
        picture = picture.copy()  # which may be `image` itself
        return next((frame for frame in _later_frames(image, colour, path) if not is_blank(frame)), picture)
    return picture


def is_blank(picture: Image.Image) -> bool:
    """Whether all pixels have one colour. A few are looked at first, as few pictures are blank."""
    few = picture.resize((min(picture.width, LOOKED_AT), min(picture.height, LOOKED_AT)), Image.Resampling.NEAREST)
    return all(low == high for part in (few, picture) for low, high in np.reshape(part.getextrema(), (-1, 2)))


def readings_differ(path: str | Path, picture: Image.Image) -> bool:
    """Whether the published code reads other pixels than `picture`, which `read_image` gave, or ends in an error."""
    try:
        return read_image(path, reading=PUBLISHED).tobytes() != picture.tobytes()
    except UserError:
        return True


def _later_frames(image: Image.Image, colour: object, path: str | Path) -> Iterator[Image.Image]:
    """The frames of an animation after the first, as far as they can be read, and no more pixels than a picture has.

    Args:
        colour: the transparent one, as the file has it.
    """
    limit = (Image.MAX_IMAGE_PIXELS or 2**27) // max(image.width * image.height, 1)
    for number in range(1, min(limit, MAX_FRAMES)):
        try:
            image.seek(number)
            if image.format == "PNG" and colour is not None:
                image.info["transparency"] = colour  # brought to 8 bits with the frame before
            frame = _frame_to_rgb(image, path)
        except Exception:  # EOFError after the last frame, and nearly any other of a hostile file
            return
        yield frame


def _frame_to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """The frame that an opened picture stands at, as RGB on white."""
    raw_mode = _raw_mode(image)
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey_to_rgb(image, raw_mode, path)
    _mend_transparency(image, raw_mode)
    return _to_rgb(image)


def read_size(path: str | Path, least_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) of what `read_image` would read, from the file's head; raises UserError as that does."""
    with _opened(path, least_size) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Path, least_size: tuple[int, int] | None) -> Iterator[Image.Image]:
    """A picture whose pixels are not yet decoded; whatever goes wrong until it is closed is told as a UserError."""
    with open_regular(path, EXPECTED, REMEDY) as file:
        try:
            with _open(file, path) as image:
                _check(image, path)
                if least_size is not None:
                    image.draft(None, least_size[::-1])
                yield image
        except UserError:
            raise
        except Image.UnidentifiedImageError as error:
            found = "another kind of file, or one cut off in its first bytes" if _size(file) else "an empty file"
            raise mistake(path, EXPECTED, found, REMEDY) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(path, reason(error)) from error
        except Exception as error:  # Pillow's plugins meet a hostile file with nearly any exception
            raise mistake(path, EXPECTED, f"a broken or truncated one ({reason(error)})", REMEDY) from error


def _open(file: BinaryIO, path: str | Path) -> Image.Image:
    """Opens a picture, if need be with the package that its format needs."""
    try:
        return Image.open(without_metadata(file))
    except Image.UnidentifiedImageError:
        if not load_plugin(file, path, EXPECTED):
            raise
    return Image.open(file)


def _check(image: Image.Image, path: str | Path) -> None:
    """Raises UserError for a picture that is not to be decoded."""
    if image.format == "EPS":
        raise mistake(path, EXPECTED, "EPS, a program to run", "store it as PNG")
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB on white of a picture with 8 bits a channel."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _deep_grey_to_rgb(image: Image.Image, raw_mode: str, path: str | Path) -> Image.Image:
    """RGB on white of a grey picture of 12, 16 or 32 bits, which Pillow would cut off at 255.

    White is 65,535 in 16 bits. In 32 bits it is the first of 1 (floats only), 255 and 65,535 that no value exceeds.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    whites: tuple[int, ...]
    if image.mode == "F":
        whites = FLOAT_WHITES
    elif image.mode == "I" and image.format != "PPM":  # the integers of a PPM come from 16 bits
        whites = INTEGER_WHITES
    else:
        whites = (RAW_WHITES.get(raw_mode, 2**16 - 1),)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        raise mistake(path, f"grey values from 0 to {whites[-1]}", f"{low} to {high}", "store it with 8 bits a channel")
    steps = 255 / white if image.mode == "F" else 256 / (white + 1)  # of integers the upper eight bits
    grey = (np.rint if image.mode == "F" else np.floor)(values * steps).astype(np.uint8)
    if image.info.get("transparency") is not None:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _mend_transparency(image: Image.Image, raw_mode: str) -> None:
    """Brings a PNG's transparent colour to the 8 bits of its pixels; Pillow leaves it in those of the file."""
    colour = image.info.get("transparency")
    if isinstance(colour, int) and raw_mode in GREY_STEPS:
        image.info["transparency"] = colour * GREY_STEPS[raw_mode]
    elif isinstance(colour, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _raw_mode(image: Any) -> str:
    """How the file stores its pixels, in Pillow's terms; '' if the plugin does not say."""
    arguments = image.tile[0].args if getattr(image, "tile", None) else ""
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def _size(file: BinaryIO) -> int:
    """The file's size in bytes."""
    return file.seek(0, 2)


def _too_large(path: str | Path, found: str) -> UserError:
    """The error for a picture above Pillow's limit."""
    return mistake(path, f"at most {Image.MAX_IMAGE_PIXELS:,} pixels", found, "store it smaller")
