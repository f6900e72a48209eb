"""YOLO text files of boxes: one line per object, `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, as fractions.

Some tools write corners, `class x1 y1 x2 y2`, which `guess_fractions` tells from the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.classes import NameIndex
from data.errors import DataError
from data.layouts.class_names import BOX_FILES, ClassNames, find_names
from data.layouts.tree import Found, listing
from data.layouts.units import guess_fractions

_MAX_BYTES = 5_000_000
_REMEDY = "write `class cx cy w h`, the box as fractions of the image"


def looks_like_yolo(path: Path) -> str | None:
    """Return what is wrong with the first line of a text file that is no box, None if there is none."""
    try:
        for number, _, box in _lines(path):
            if box is None:
                return f"{path}, line {number}: no YOLO box; {_REMEDY}"
    except DataError as error:
        return str(error)
    return None


def _lines(path: Path) -> Iterator[tuple[int, int, list[float] | None]]:
    """Yield number, class and the four numbers of each line's box, None for a line that is no box. Raises DataError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES} bytes; a file of boxes belongs to one image")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); {_REMEDY}") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if words:
            yield number, *_parsed(words)


def _parsed(words: list[str]) -> tuple[int, list[float] | None]:
    """Return class and four numbers: of a box, of one with its confidence, or of the box around a polygon."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return -1, None
    if len(values) < 5 or not all(map(math.isfinite, values)) or values[0] != int(values[0]) or values[0] < 0:
        return -1, None
    if len(values) <= 6:
        return int(values[0]), values[1:5]
    if len(values) % 2 == 0:
        return -1, None
    xs, ys = values[1::2], values[2::2]
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    return int(values[0]), [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def yolo_document(found: Found, classes: Sequence[str] | None = None) -> Found:
    """Read the text files of a set into the form of a COCO file.

    Where no file names the classes, numbers are places in `classes`. Raises DataError if some go beyond, or if boxes
    are no fractions.
    """
    ids = {path: number for number, path in enumerate(found.images)}
    annotations: list[dict[str, Any]] = []
    above: list[str] = []
    used: set[int] = set()
    for image, file in found.pairs:
        for number, label, box in _lines(file):
            where = f"{file.name} line {number}"
            above += [where] if box is not None and max(box) > 1.5 else []
            annotations.append({"id": where, "image_id": ids[image], "category_id": label, "bbox": box})
            used |= {label} if box is not None else set()
    if 2 * len(above) > len(annotations):
        raise DataError(f"{found.annotation}/{above[0]}: the box is in pixels; {_REMEDY}")
    own = _names(found)
    names, notes = _by_number(own, used) if own else _unnamed(found, used, classes)
    document = {
        "images": [{"id": number, "file_name": str(path)} for path, number in ids.items()],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }
    units = guess_fractions([entry["bbox"] for entry in annotations if entry["bbox"]])
    if units.form != "centres":
        notes += (f"boxes are read as {units}: YOLO's centre and size do not fit them",)
    source = own.source if own else found.annotation
    return replace(found, document=document, units=units, annotation=source, notes=(*found.notes, *notes))


def _names(found: Found) -> ClassNames | None:
    """Read the nearest file of class names, from the folder of the text files upwards."""
    assert found.annotation is not None
    return find_names([found.annotation, *list(found.annotation.parents)[:3]], BOX_FILES)


def _unnamed(found: Found, used: set[int], classes: Sequence[str] | None) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return number -> name where no file has names: its own digits, or the class at that place."""
    missing = "no file names the classes (data.yaml, classes.txt)"
    names = {number: str(number) for number in sorted(used)}
    known = NameIndex(classes or ())
    if classes is None or not used or any(known(name) is not None for name in names.values()):
        return names, (f"{missing}: they are numbers",)
    if max(used) < len(classes):
        how = f"0 to {len(classes) - 1} are read as the classes in their order: {listing(classes)}"
        return dict(enumerate(classes)), (f"{missing}: {how}",)
    raise DataError(
        f"{found.annotation}: {missing}, and the numbers {listing(names.values())} of its boxes go beyond "
        f"{len(classes) - 1}, the last of {listing(classes, 10)}; name them in a data.yaml"
    )


def _by_number(own: ClassNames, used: set[int]) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return number -> name for all numbers in use; a number without a name stands for itself."""
    values = own.coding.values or {index: index for index in range(len(own.names))}
    names = {value: own.names[index] for value, index in values.items()}
    missing = sorted(used - names.keys())
    if not missing:
        return names, ()
    numbers = ", ".join(map(str, missing))
    note = f"{own.source} names no class {numbers}, which label files use: name it there or correct them"
    return {**names, **{n: str(n) for n in missing}}, (note,)
