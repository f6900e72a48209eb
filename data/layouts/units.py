"""What the numbers of boxes stand for, and how they lie on the stored image."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from data.images import image_orientation, image_size

Four = tuple[float, float, float, float]
Form = Literal["sizes", "corners", "centres"]
Note = Callable[[str, str], None]
"""Takes a kind of remark and an example."""
_TEXT_FORMS: tuple[Form, ...] = ("centres", "corners")
FRACTION = 1.01
"""Numbers up to this are fractions of the image: rounding included, and no box is a pixel wide."""


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return found if math.isfinite(found) else None


def four_numbers(raw: object) -> Four | None:
    """Return a box of four finite numbers, which may all be written as text; None for anything else."""
    if not isinstance(raw, list) or len(raw) != 4:
        return None
    if all(isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}(\.\d{1,20})?\s*", value) for value in raw):
        raw = [float(value) for value in raw]
    x, y, w, h = map(number, raw)
    return None if x is None or y is None or w is None or h is None else (x, y, w, h)


@dataclass(frozen=True)
class Units:
    """What the four numbers of all boxes of a file are: x y and a form, in pixels or as fractions of the image."""

    form: Form = "sizes"
    fractions: bool = False

    def to_sizes(self, box: Four, width: float, height: float) -> Four:
        """Return x y width height in pixels of an image of this size."""
        x, y, a, b = (value * side for value, side in zip(box, (width, height) * 2)) if self.fractions else box
        if self.form == "corners":
            return x, y, a - x, b - y
        return (x - a / 2, y - b / 2, a, b) if self.form == "centres" else (x, y, a, b)

    def __str__(self) -> str:
        ends = {"sizes": "x y width height", "corners": "x1 y1 x2 y2", "centres": "centre x, centre y, width, height"}
        return f"{ends[self.form]}{' as fractions of the image' if self.fractions else ''}"


def guess_units(boxes: Sequence[Four], sizes: Sequence[tuple[float, float]], areas: Sequence[float | None]) -> Units:
    """Return what the boxes of a file are; COCO's x y width height in pixels unless the numbers show otherwise.

    sizes: width and height of the image of each box; areas: what the file gives as area of each box.
    Corners: every box is one, and some stick out of their image otherwise or all areas are those of corners.
    Centres: half of the boxes stick out otherwise, and none does so.
    """
    fractions = bool(boxes) and all(max(map(abs, box)) <= FRACTION for box in boxes)
    fractions &= all(min(size) > 4 for size in sizes) and any(max(box) > 0 for box in boxes)
    scaled = [Units(fractions=fractions).to_sizes(box, *size) for box, size in zip(boxes, sizes)]
    pairs = [(box, size) for box, size in zip(scaled, sizes) if box[2] > 0 and box[3] > 0]
    out = sum(not _inside(box, size) for box, size in pairs)
    if pairs and len(pairs) == len(boxes):
        as_corners = [Units("corners").to_sizes(box, *size) for box, size in pairs]
        corners_fit = out or _areas_fit(as_corners, scaled, sizes, areas)
        if corners_fit and all(_inside(box, size) for box, (_, size) in zip(as_corners, pairs)):
            return Units("corners", fractions)
        as_centres = [Units("centres").to_sizes(box, *size) for box, size in pairs]
        if 2 * out >= len(pairs) and out > 1 and all(_inside(b, size) for b, (_, size) in zip(as_centres, pairs)):
            return Units("centres", fractions)
    return Units("sizes", fractions)


def guess_fractions(boxes: Sequence[Four]) -> Units:
    """Return what text files of fractions hold: centres, or corners if all may be and a quarter stick out otherwise."""
    scaled = [(1000 * a, 1000 * b, 1000 * c, 1000 * d) for a, b, c, d in boxes]
    fits = {form: [_inside(Units(form).to_sizes(b, 0, 0), (1000, 1000)) for b in scaled] for form in _TEXT_FORMS}
    out = fits["centres"].count(False)
    corners = all(fits["corners"]) and out > 1 and 4 * out >= len(boxes)
    return Units("corners" if corners else "centres", fractions=True)


def _inside(box: Four, size: tuple[float, float]) -> bool:
    """Return whether x y width height is a box on an image, up to rounding."""
    x, y, w, h = box
    slack = 1 + 0.02 * max(size)
    return w > 0 and h > 0 and min(x, y) >= -slack and x + w <= size[0] + slack and y + h <= size[1] + slack


def _areas_fit(
    corners: Sequence[Four],
    plain: Sequence[Four],
    sizes: Sequence[tuple[float, float]],
    areas: Sequence[float | None],
) -> bool:
    """Return whether the areas are those of corners and not of widths and heights, in pixels or as fractions."""
    given = [(a, b, size[0] * size[1], area) for a, b, size, area in zip(corners, plain, sizes, areas) if area]
    if not given:
        return False

    def close(box: Four, whole: float, area: float) -> bool:
        return any(math.isclose(box[2] * box[3], value, rel_tol=0.01) for value in (area, area * whole))

    return all(close(a, whole, area) and not close(b, whole, area) for a, b, whole, area in given)


@dataclass(frozen=True)
class View:
    """How the pixel frame of an annotation file lies on the stored image."""

    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    orientation: int = 1

    @property
    def frame(self) -> tuple[float, float]:
        """Width and height of the image in the frame of the file."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width / self.scale_x, self.height / self.scale_y

    @staticmethod
    def of(path: Path, listed: tuple[object, object], note: Note) -> View:
        """Compare the width and height that a file gives, if it does, with those of the image."""
        width, height = image_size(path)
        listed_width, listed_height = (number(value) or 0 for value in listed)
        if min(listed_width, listed_height) < 1 or (listed_width, listed_height) == (width, height):
            return View(width, height)
        if (listed_width, listed_height) == (height, width):
            orientation = image_orientation(path)
            if orientation >= 5:
                note("images annotated after their EXIF rotation (boxes turned back)", path.name)
            else:
                note("images whose width and height are exchanged in the annotation file", path.name)
            return View(width, height, orientation=orientation)
        note("images of another size than the annotation file says (boxes scaled)", path.name)
        return View(width, height, width / listed_width, height / listed_height)

    def corners(self, x: float, y: float, w: float, h: float) -> Four:
        """Return x1 y1 x2 y2 on the stored image of a box x y width height in the frame of the file."""
        x1, x2 = x * self.scale_x, (x + w) * self.scale_x
        y1, y2 = y * self.scale_y, (y + h) * self.scale_y
        if self.orientation in (6, 7):  # stored y runs against the shown x
            y1, y2, x1, x2 = self.height - x2, self.height - x1, y1, y2
        elif self.orientation in (5, 8):
            y1, y2, x1, x2 = x1, x2, y1, y2
        if self.orientation in (7, 8):  # stored x runs against the shown y
            x1, x2 = self.width - x2, self.width - x1
        return x1, y1, x2, y2


def box_around(polygons: object) -> dict[str, list[float]]:
    """Return the bbox of an annotation that has polygons alone, as a dictionary; an empty one without polygons."""
    numbers = [value for polygon in polygons for value in polygon] if _are_polygons(polygons) else []
    if not numbers:
        return {}
    (left, right), (top, bottom) = ((min(part), max(part)) for part in (numbers[::2], numbers[1::2]))
    return {"bbox": [left, top, right - left, bottom - top]}


def _are_polygons(value: object) -> TypeGuard[list[list[float]]]:
    """Return whether a segmentation is a list of polygons, each of at least three points x, y."""
    if not isinstance(value, list):
        return False
    even = all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in value)
    return even and all(number(v) is not None for polygon in value for v in polygon)
