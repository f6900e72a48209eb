"""Names of classes: Pascal VOC, Imagenette, and how two spellings of one name are recognised."""

from __future__ import annotations

import re
from collections.abc import Sequence

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

_WORDNET_ID = re.compile(r"n\d{8}(?!\d)")


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


def normal_name(name: str) -> str:
    """Return the form in which names are compared: lower case, a run of `-`, `_` and blanks is one blank."""
    return re.sub(r"[-_\s]+", " ", name).strip().lower()


def name_index(name: str, classes: Sequence[str]) -> int | None:
    """Return the position of `name` in `classes`: by normal form, else by normal form without blanks."""
    normal = [normal_name(known) for known in classes]
    wanted = normal_name(name)
    if wanted in normal:
        return normal.index(wanted)
    joined = [known.replace(" ", "") for known in normal]
    wanted = wanted.replace(" ", "")
    return joined.index(wanted) if wanted in joined else None


def imagenette_name(folder: str) -> str | None:
    """Return the readable Imagenette name behind `n01440764`, `n01440764-tench`, `tench` or `Golf_ball`."""
    found = _WORDNET_ID.match(folder.lower())
    if found is not None:
        return IMAGENETTE.get(found.group())
    readable = tuple(IMAGENETTE.values())
    position = name_index(folder, readable)
    return None if position is None else readable[position]
