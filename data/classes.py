"""Names of classes: Pascal VOC, Imagenette, and how two spellings of one name are recognised."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

VOC_CLASSES: tuple[str, ...] = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

IMAGENETTE: dict[str, str] = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""WordNet id -> readable name, in the order of the ids (https://github.com/fastai/imagenette)."""

_OTHER_NAMES = {
    "tinca tinca": "tench",
    "english springer spaniel": "English springer",
    "church building": "church",
    "horn": "French horn",
    "dustcart": "garbage truck",
    "gasoline pump": "gas pump",
    "petrol pump": "gas pump",
    "island dispenser": "gas pump",
    "chute": "parachute",
}
"""WordNet's other names of Imagenette's classes, in normal form. A set of one's own may use them for other things."""
_NUMBER = re.compile(r"^\d+[-_.\s]+(?=\D)")
_WORDNET_ID = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")


def voc_palette() -> np.ndarray:
    """Return the colour of every mask index: uint8 (256, 3), red green blue; row 255 is the void colour.

    The bits of the index are spread over the three channels, lowest bit into the highest bit of red
    (`VOClabelcolormap.m` of the VOC development kit).
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> channel) & 1) << (7 - bit)).astype(np.uint8)
        index = index >> 3
    return colours


def one_form(text: str) -> str:
    """Return text in Unicode form NFC: a file system may hand out `e` and an accent where a file has `é`."""
    return unicodedata.normalize("NFC", text)


def normal_name(name: str) -> str:
    """Return the form in which names of two sets are compared: lower case, a run of `-`, `_` and blanks is one blank.

    A minus sign before a number stays: `-1` is not `1`.
    """
    spaced = re.sub(r"[-_\s]+", " ", re.sub(r"^\s*-(?=\d)", "\N{MINUS SIGN}", one_form(name)))
    return spaced.strip().casefold()


class NameIndex:
    """Positions of names in a list of classes, found in constant time.

    A name as it is written counts first, then its normal form, then that without blanks. Forms that two classes
    share (`a` of `A` and `a`) stand for neither.
    """

    def __init__(self, classes: Iterable[str]) -> None:
        names = [one_form(name) for name in classes]
        self._levels: list[tuple[Callable[[str], str], dict[str, int | None]]] = []
        for form in (one_form, normal_name, _joined):
            positions: dict[str, int | None] = {}
            for position, name in enumerate(names):
                key = form(name)
                # The same name twice is one class; two names of one form differ in their spelling only.
                same = positions.get(key, position)
                known = same is not None and names[same] == name
                positions[key] = same if known else None
            self._levels.append((form, positions))

    def __call__(self, name: str) -> int | None:
        """Return the position of a name, None if it stands for no class."""
        for form, positions in self._levels:
            key = form(name)
            if key in positions:
                return positions[key]
        return None


def _joined(name: str) -> str:
    """Return the normal form without blanks, but for numbers: `1 0` is not `10`."""
    normal = normal_name(name)
    return normal.replace(" ", "") if any(map(str.isalpha, normal)) else normal


def name_index(name: str, classes: Sequence[str]) -> int | None:
    """Return the position of one name in `classes`; for many names, build a `NameIndex` once."""
    return NameIndex(classes)(name)


def folder_position(folder: str, known: NameIndex) -> int | None:
    """Return the position of the class that a folder stands for; None if it stands for none.

    By its name, else by that without a number before it (`0_tench`), else by the one class among several names
    (`tench, Tinca tinca`). Imagenette's classes are known by WordNet's ids and names, too.
    """
    bare = _NUMBER.sub("", folder)
    for names in ([folder], [bare], bare.split(",")):
        found = {_either_position(name, known) for name in names} - {None}
        if len(found) == 1:
            return found.pop()
    return None


def _either_position(name: str, known: NameIndex) -> int | None:
    """Return the position of a name, else of that which Imagenette has for it."""
    position = known(name)
    readable = imagenette_name(name) or _OTHER_NAMES.get(normal_name(name))
    return known(readable) if position is None and readable else position


_BY_NAME = NameIndex(IMAGENETTE.values())


def imagenette_name(folder: str) -> str | None:
    """Return the readable Imagenette name behind `n01440764`, `0_n01440764-tench`, `tench` or `Golf_ball`."""
    found = _WORDNET_ID.search(folder.lower().replace("_", "-"))
    if found is not None:
        return IMAGENETTE.get(found.group())
    position = _BY_NAME(folder)
    return None if position is None else tuple(IMAGENETTE.values())[position]
