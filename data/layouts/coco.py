"""Reader of COCO detection files, tolerant of what such files look like in the wild."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from data.classes import name_index, normal_name
from data.errors import DataError
from data.images import image_orientation, image_size
from data.layouts.tree import Found, listing
from data.types import MAX_BOXES, Record, TaskSet

_REQUIRED = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
_LARGEST = 1e12
"""Square pixels: an area above this is no measurement."""
_REMEDY = "use a COCO detection file (images, annotations with bbox, categories)"


@dataclass(frozen=True)
class _Box:
    """One annotation: x1 y1 x2 y2 in pixels of the stored image, and the id of its category."""

    category: str
    corners: tuple[float, float, float, float]
    crowd: bool
    area: float


class _Notes:
    """Counts what was noticed, with a few examples of each kind."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, *examples: str) -> None:
        self._examples[kind].extend(examples)

    def lines(self) -> tuple[str, ...]:
        return tuple(f"{len(some)} {kind}: {listing(some)}" for kind, some in self._examples.items() if some)


def load_document(path: Path) -> dict[str, Any]:
    """Parse a COCO detection file and check its form.

    Raises DataError if it is no JSON, no object, lacks a list or a key, or holds annotations without any box.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); {_REMEDY}, or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds a JSON {type(document).__name__}, not an object; {_REMEDY}")
    for key, fields in _REQUIRED.items():
        entries = document.get(key)
        if not isinstance(entries, list):
            what = f"{key!r} is no list" if key in document else f"has no {key!r}"
            raise DataError(f"{path}: {what}; {_REMEDY}")
        for position, entry in enumerate(entries):
            missing = [name for name in fields if not isinstance(entry, dict) or entry.get(name) is None]
            # Captions carry no category: the sentence about boxes below says more.
            if missing and missing != ["category_id"]:
                raise DataError(f"{path}: {key}[{position}] has no {listing(missing)}; {_REMEDY}")
    annotations = document["annotations"]
    if annotations and not any("bbox" in annotation for annotation in annotations):
        raise DataError(f"{path}: none of its {len(annotations)} annotations has a bbox; {_REMEDY}")
    return document


def file_parts(file_name: object) -> tuple[str, ...]:
    """Return the path components of a COCO `file_name`, also one written on Windows."""
    return PurePosixPath(str(file_name).replace("\\", "/")).parts


def read_boxes(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a detection set; boxes are in pixels of the stored image, crowd annotations are kept and marked.

    Without `classes`, the classes are the categories that have at least one usable annotation, ordered by id.
    With `classes`, categories are mapped by name and others that have annotations become `TaskSet.unknown`.
    Raises DataError if no annotation of the set is usable, or an annotated image cannot be read.
    """
    assert found.annotation is not None
    notes = _Notes()
    document, source = found.document, found.annotation
    names = _category_names(document["categories"])
    files = _match_files(document["images"], found, notes)
    boxes = _read_annotations(document, files, names, notes)
    every = [box for some in boxes.values() for box in some]
    crowded = [path.name for path, some in boxes.items() if len(some) > MAX_BOXES]
    notes.add(f"images with more than {MAX_BOXES} boxes (training takes the largest)", *crowded)
    if not every:
        raise DataError(
            f"{source}: no usable annotation on any of its {len(files)} images on disk; it lists the classes "
            f"{listing(names.values(), 10) or '(none)'}; check that images and annotations belong together"
        )
    if classes is None:
        # A category with crowd regions only cannot be trained on.
        classes = _names_in_use(names, (box for box in every if not box.crowd))
        if not classes:
            raise DataError(f"{source}: all {len(every)} annotations are crowds; annotate single objects")
    in_use = _names_in_use(names, every)
    unknown = tuple(name for name in in_use if name_index(name, classes) is None)
    every_name = (*classes, *unknown)
    labels = {key: name_index(name, every_name) for key, name in names.items()}
    records = [_record(path, boxes.get(path, []), labels) for path in sorted(set(files.values()), key=_order)]
    every_note = (*found.notes, *notes.lines())
    return TaskSet("det", found.split, found.layout, tuple(classes), tuple(records), unknown, every_note)


def _order(path: Path) -> tuple[str, str]:
    return path.name, str(path)


def _category_names(categories: list[dict[str, Any]]) -> dict[str, str]:
    """Return category id -> name, ordered by id; a name may itself be an object that holds the name."""

    def by_id(entry: dict[str, Any]) -> tuple[int, int, str]:
        text = str(entry["id"])
        return (0, int(text), "") if re.fullmatch(r"-?\d{1,20}", text) else (1, 0, text)

    names = {}
    for entry in sorted(categories, key=by_id):
        name = entry["name"]
        if isinstance(name, dict):
            name = name.get("name", entry["id"])
        names[str(entry["id"])] = str(name).strip()
    return names


def _names_in_use(names: dict[str, str], boxes: Iterable[_Box]) -> tuple[str, ...]:
    """Return the names of the categories of `boxes`, ordered by id, each name once."""
    used = {box.category for box in boxes}
    spelled: dict[str, str] = {}
    for key, name in names.items():
        if key in used:
            spelled.setdefault(normal_name(name), name)
    return tuple(spelled.values())


def _match_files(entries: list[dict[str, Any]], found: Found, notes: _Notes) -> dict[str, Path]:
    """Return image id -> file on disk: by name, else by stem; among equals the one whose folders fit best."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in found.images:
        by_name[path.name.lower()].append(path)
        by_stem[path.stem.lower()].append(path)
    files: dict[str, Path] = {}
    for entry in entries:
        key, parts = str(entry["id"]), file_parts(entry["file_name"])
        name = parts[-1] if parts else ""
        candidates = by_name.get(name.lower()) or by_stem.get(PurePosixPath(name).stem.lower(), [])
        if key in files:
            notes.add("image ids listed more than once (the first counts)", key)
        elif candidates:
            files[key] = max(candidates, key=lambda path: _common_tail(path.parts, parts))
        else:
            notes.add("listed images that are not on disk (skipped)", name)
    used = set(files.values())
    notes.add("image files that the annotation file does not list (not used)",
              *(path.name for path in found.images if path not in used))  # fmt: skip
    return files


def _common_tail(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the path components that two paths share at their end, the file name left out."""
    shared = 0
    for one, other in zip(reversed(first[:-1]), reversed(second[:-1])):
        if one != other:
            break
        shared += 1
    return shared


def _read_annotations(
    document: dict[str, Any], files: dict[str, Path], names: dict[str, str], notes: _Notes
) -> dict[Path, list[_Box]]:
    """Return the usable annotations of every image that has any."""
    frames = {str(entry["id"]): entry for entry in reversed(document["images"])}
    views: dict[str, _View] = {}
    boxes: dict[Path, list[_Box]] = defaultdict(list)
    seen: set[str] = set()
    for position, annotation in enumerate(document["annotations"]):
        key = str(annotation["image_id"])
        label = f"id {annotation['id']}" if "id" in annotation else f"annotations[{position}]"
        if key not in frames:
            notes.add("annotations of images that are not listed (skipped)", label)
        if key not in files:
            continue
        if str(annotation.get("category_id")) not in names:
            notes.add("annotations whose category is not listed (dropped)", label)
            continue
        if label in seen:
            notes.add("annotation ids used more than once (all kept)", label)
        seen.add(label)
        if key not in views:
            views[key] = _View.of(files[key], frames[key], notes)
        box = _usable_box(annotation, label, views[key], notes)
        if box is not None:
            boxes[files[key]].append(box)
    return boxes


@dataclass(frozen=True)
class _View:
    """How the pixel frame of the JSON lies on the stored image."""

    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    orientation: int = 1

    @staticmethod
    def of(path: Path, entry: dict[str, Any], notes: _Notes) -> _View:
        """Compare the size in the JSON with that of the file."""
        width, height = image_size(path)
        listed_width, listed_height = _number(entry.get("width")) or 0, _number(entry.get("height")) or 0
        if min(listed_width, listed_height) < 1 or (listed_width, listed_height) == (width, height):
            return _View(width, height)
        if (listed_width, listed_height) == (height, width):
            orientation = image_orientation(path)
            if orientation >= 5:
                notes.add("images annotated after their EXIF rotation (boxes turned back)", path.name)
            else:
                notes.add("images whose width and height are exchanged in the annotation file", path.name)
            return _View(width, height, orientation=orientation)
        notes.add("images of another size than the annotation file says (boxes scaled)", path.name)
        return _View(width, height, width / listed_width, height / listed_height)

    def corners(self, x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """Return x1 y1 x2 y2 on the stored image of a box x y width height in the frame of the JSON."""
        x1, x2 = x * self.scale_x, (x + w) * self.scale_x
        y1, y2 = y * self.scale_y, (y + h) * self.scale_y
        if self.orientation in (6, 7):  # stored y runs against the shown x
            y1, y2, x1, x2 = self.height - x2, self.height - x1, y1, y2
        elif self.orientation in (5, 8):
            y1, y2, x1, x2 = x1, x2, y1, y2
        if self.orientation in (7, 8):  # stored x runs against the shown y
            x1, x2 = self.width - x2, self.width - x1
        return x1, y1, x2, y2


def _number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return number if math.isfinite(number) else None


def _usable_box(annotation: dict[str, Any], label: str, view: _View, notes: _Notes) -> _Box | None:
    """Check one annotation and clip it to its image; None if nothing is left of it."""
    raw = annotation.get("bbox")
    numbers = [_number(value) for value in raw] if isinstance(raw, list) and len(raw) == 4 else []
    finite = [value for value in numbers if value is not None]
    if len(finite) != 4:
        notes.add("annotations whose box is not four finite numbers (dropped)", label)
        return None
    x, y, w, h = finite
    if w <= 0 or h <= 0:
        notes.add("boxes without width or height (dropped)", label)
        return None
    corners = view.corners(x, y, w, h)
    limits = (view.width, view.height, view.width, view.height)
    x1, y1, x2, y2 = clipped = tuple(min(max(value, 0.0), limit) for value, limit in zip(corners, limits))
    if x2 <= x1 or y2 <= y1:
        notes.add("boxes outside their image (dropped)", label)
        return None
    # COCO's own boxes stick out by rounding errors; only more than a pixel is worth a word.
    if any(abs(before - after) > 1 for before, after in zip(corners, clipped)):
        notes.add("boxes that stick out of their image (clipped)", label)
    area = _number(annotation.get("area"))
    scaled = area * view.scale_x * view.scale_y if area is not None and area > 0 else 0.0
    if not 0 < scaled < _LARGEST:
        scaled = (x2 - x1) * (y2 - y1)
    crowd = bool(_number(annotation.get("iscrowd")) or annotation.get("iscrowd") is True)
    return _Box(str(annotation["category_id"]), (x1, y1, x2, y2), crowd, scaled)


def _record(path: Path, boxes: list[_Box], labels: dict[str, int | None]) -> Record:
    return Record(
        path,
        boxes=torch.tensor([box.corners for box in boxes], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([labels[box.category] for box in boxes], dtype=torch.int64),
        crowd=torch.tensor([box.crowd for box in boxes], dtype=torch.bool),
        area=torch.tensor([box.area for box in boxes], dtype=torch.float32),
    )
