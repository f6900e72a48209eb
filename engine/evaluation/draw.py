"""Predictions drawn into a picture: coloured regions, boxes with names, and a legend beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from data.classes import NameIndex, voc_palette
from data.pixels import strips
from engine.evaluation.lettering import Lettering, lettering
from engine.evaluation.pictures import AnyPicture, rgb_picture
from engine.evaluation.prediction import Prediction

OPACITY = 0.45
"""Of the regions."""
LEGEND = 230
"""Width of the legend in pixels."""
LEAST = 480
"""Pixels of the longer side, at least."""
MOST = 4800
"""Pixels of the longer side, at most: in a larger picture lines and writing are too fine to be seen."""
Colour = tuple[int, int, int]
BACKGROUND = 0
PALETTE: list[Colour] = [(int(red), int(green), int(blue)) for red, green, blue in voc_palette()]


def draw(picture: AnyPicture, found: Prediction, opacity: float = OPACITY, with_legend: bool = True) -> Image.Image:
    """A copy of `picture`, RGB, with boxes, regions of an opacity in 0..1 and, to its right, a legend.

    Its longer side has 480 to 4,800 pixels: small pictures are enlarged, or the writing would cover them.
    """
    image, mask = rgb_picture(picture), found.mask
    enlarged, step = max(1.0, LEAST / max(image.size)), math.ceil(max(image.size) / MOST)
    if step > 1:
        image, mask = image.reduce(step), mask[::step, ::step]
    size = (round(image.width * enlarged), round(image.height * enlarged))
    extent = (size[0] + LEGEND, max(size[1], 24 * (4 + len(found.named_regions)))) if with_legend else size
    whole = Image.new("RGB", extent, "white")
    for top, end in strips(*image.size):  # floats take many times the memory of the picture
        strip = np.asarray(image.crop((0, top, image.width, end)))
        coloured = Image.fromarray(tinted(strip, mask[top:end], opacity))
        whole.paste(coloured.resize(size) if enlarged > 1 else coloured, (0, top))
    pen, letters = ImageDraw.Draw(whole), lettering((found.label or "", *found.named_regions, *found.det_classes))
    colours = box_colours(found.det_classes, found.seg_classes)
    for box in reversed(found.boxes):  # the surest ones on top
        corners = [enlarged / step * v for v in box.xyxy]
        colour = colours[box.name]
        casing = [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1]
        pen.rectangle(casing, outline="white", width=5)  # a box may lie on a region of its own colour
        pen.rectangle(corners, outline=colour, width=3)
        label(pen, (corners[0], corners[1]), f"{box.name} {box.score:.2f}", colour, letters)
    if with_legend:
        for beside in ((size[0], 0), (0, size[1])):
            pen.rectangle((*beside, *whole.size), fill="white")
        legend(pen, size[0] + 12, found, letters)
    return whole


def tinted(pixels: np.ndarray, mask: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """Pixels uint8 (H, W, 3) with every region but the background in its colour."""
    colours = np.array([colour_of(i) for i in range(int(mask.max()) + 1)])[mask]
    mixed = (1 - opacity) * pixels + opacity * colours
    return np.where((mask != BACKGROUND)[..., None], mixed, pixels).round().astype(np.uint8)


def legend(pen: ImageDraw.ImageDraw, left: int, found: Prediction, letters: Lettering) -> None:
    """The image's label, then every region with its colour and share."""
    lines: list[tuple[Colour | None, str]] = [
        (None, "" if found.label is None else f"label: {found.label} ({found.probability:.0%})")
    ]
    lines += [(None, ""), (None, "regions")]
    for name, share in found.named_regions.items():
        lines.append((colour_of(found.seg_classes.index(name)), f"{name} ({share:.0%})"))
    for i, (colour, text) in enumerate(lines):
        top = 8 + 24 * i
        if colour is not None:
            pen.rectangle((left, top, left + 16, top + 16), fill=colour, outline="black")
        where = (left + (24 if colour is not None else 0), top)
        pen.text(where, letters.legible(text), fill="black", font=letters.font)


def label(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    letters: Lettering,
) -> None:
    """Text on its colour, above the corner where there is room, else below it."""
    text = letters.legible(text)
    left, _, right, bottom = pen.textbbox((0, 0), text, font=letters.font)
    y = corner[1] - bottom - 4 if corner[1] >= bottom + 4 else corner[1] + 2
    pen.rectangle((corner[0], y, corner[0] + right - left + 6, y + bottom + 3), fill=colour)
    bright = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 140
    pen.text((corner[0] + 3, y), text, fill="black" if bright else "white", font=letters.font)


def box_colours(det_classes: Sequence[str], seg_classes: Sequence[str]) -> dict[str, Colour]:
    """Colour of each class of boxes: that of the regions of its name, or one that no region has."""
    region, first = NameIndex(seg_classes), max(1, len(seg_classes))
    others = [name for name in det_classes if not region(name)]
    return {name: colour_of(region(name) or first + others.index(name)) for name in det_classes}


def colour_of(index: int) -> Colour:
    """The VOC colour of a class, background black; beyond the 255 that there are, one of them again."""
    return PALETTE[(index - 1) % 254 + 1 if index else BACKGROUND]
