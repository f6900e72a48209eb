"""Writing of names in any script: a font that has their characters, or the numbers of those that none has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
SIZE = 14
"""Of letters, in pixels."""


@dataclass(frozen=True)
class Lettering:
    """A font, and the characters beyond ASCII that it has."""

    font: Font
    known: frozenset[str] = frozenset()

    def legible(self, text: str) -> str:
        """The text with `U+732B` for each character that the font would draw as an empty box."""
        return "".join(c if c.isascii() or c in self.known else f"U+{ord(c):04X}" for c in text)


def lettering(texts: Iterable[str]) -> Lettering:
    """The lettering that has most of the characters of texts: Pillow's, DejaVu Sans of matplotlib, or the system's."""
    return _lettering(frozenset(c for text in texts for c in text if not c.isascii()))


@lru_cache(maxsize=64)
def _lettering(needed: frozenset[str]) -> Lettering:
    best = Lettering(ImageFont.load_default(SIZE))
    for path, known in _fonts() if needed else ():
        if len(needed & known) > len(best.known):
            try:
                best = Lettering(ImageFont.truetype(path, SIZE), needed & known)
            except OSError:  # a format that matplotlib reads and Pillow does not
                continue
            if best.known == needed:
                break
    return best


def _fonts() -> Iterator[tuple[str, frozenset[str]]]:
    """Files of fonts, DejaVu Sans first, and the characters of each."""
    try:  # slow to import, and pictures are drawn without it too
        from matplotlib.font_manager import findfont, fontManager
        from matplotlib.ft2font import FT2Font
    except ImportError:
        return
    # Unicode's Last Resort font has a sign for every block, the same for all of its characters.
    usable = sorted(entry.fname for entry in fontManager.ttflist if "lastresort" not in entry.fname.lower())
    for path in dict.fromkeys([findfont("DejaVu Sans"), *usable]):
        try:
            yield path, frozenset(map(chr, FT2Font(path).get_charmap()))
        except (OSError, RuntimeError):  # gone, or no outlines
            continue
