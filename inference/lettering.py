"""Names in figures: whatever a user's data hold, in any script, drawn as it is and never read as mathematics."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib import font_manager

from utils import is_main_process, printable

PREFERRED = ("cjk", "notosans", "wqy")  # in the names of fonts that are looked at first
NOT_FONTS = ("lastresort", "adobeblank", "fallback")  # fonts that draw a box for every character
LONGEST = 60  # characters of a name in a figure

families: list[str] = []  # of the fonts that were added for characters that the default one lacks
looked_for: set[str] = set()  # characters that the default font lacks
without_font: set[str] = set()  # those that no font has
# Told once by `lettering`, and not for each character of each figure.
warnings.filterwarnings("ignore", message="Glyph .* missing from (current )?font")


def label(name: object) -> str:
    """A name as figures show it: on one line, and not too long."""
    return printable(name, LONGEST)


@contextmanager
def lettering(texts: Iterable[str] = ()) -> Iterator[None]:
    """Figures are drawn in here, with fonts that have the characters of `texts` if the system has such fonts.

    If it has none, that is said once.
    """
    _find_fonts(set("".join(texts)) - looked_for)
    default = matplotlib.rcParams["font.family"]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": [*default, *families]}):
        yield


def _find_fonts(characters: set[str]) -> None:
    """Adds fonts of the system for those of the characters that the default font lacks."""
    lacking = {one for one in characters if one.isprintable()}
    if lacking:
        lacking -= _characters(font_manager.findfont(font_manager.FontProperties()))
    looked_for.update(lacking)
    for path in sorted(font_manager.findSystemFonts(), key=_preference) if lacking else ():
        if not lacking:
            break
        there = lacking & _characters(path)
        if there:
            font_manager.fontManager.addfont(path)
            families.append(font_manager.fontManager.ttflist[-1].name)
            lacking -= there
    if lacking and not without_font and is_main_process():
        shown = printable("".join(sorted(lacking)), LONGEST)
        advice = "figures show boxes; install one, such as Noto Sans (CJK)"
        print(f"warning: no font of this system has the characters {shown}: {advice}", file=sys.stderr)
    without_font.update(lacking)


def _preference(path: str) -> tuple[bool, bool, str]:
    """Sorts fonts: common ones for many scripts first, and the regular ones of a family."""
    name = Path(path).stem.lower().replace("-", "")
    return not any(one in name for one in PREFERRED), "bold" in name or "italic" in name, path


def _characters(path: str) -> set[str]:
    """The characters that a font file can draw; none if matplotlib cannot use it."""
    if any(name in Path(path).stem.lower() for name in NOT_FONTS):
        return set()
    try:
        font = font_manager.get_font(path)
        return {chr(code) for code in font.get_charmap()} if font.scalable else set()
    except Exception:  # a font file that is broken or of a kind that matplotlib does not draw
        return set()
