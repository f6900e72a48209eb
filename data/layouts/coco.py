"""Reader of COCO detection files, tolerant of what such files look like in the wild."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from data.classes import NameIndex, one_form
from data.errors import DataError, OtherDocument
from data.layouts.file_names import FileIndex, far_names
from data.layouts.tree import Found, listing
from data.layouts.units import Four, Units, View, box_around, four_numbers, guess_units, number
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
    corners: Four
    crowd: bool
    area: float


class _Notes:
    """Counts what was noticed, with a few examples of each kind."""

    def __init__(self) -> None:
        self._examples: dict[str, list[str]] = defaultdict(list)
        self._sentences: list[str] = []

    def add(self, kind: str, *examples: str) -> None:
        self._examples[kind].extend(examples)

    def add_sentence(self, sentence: str) -> None:
        self._sentences.append(sentence)

    def lines(self) -> tuple[str, ...]:
        counted = (f"{len(some)} {kind}: {listing(some)}" for kind, some in self._examples.items() if some)
        return (*self._sentences, *counted)


class _Ids:
    """The form in which ids are compared: `1`, `1.0` and `"000001"` are one id unless the file distinguishes them."""

    def __init__(self, values: Iterable[object]) -> None:
        texts = {str(value) for value in values}
        self._exact = len(set(map(_plain_id, texts))) < len(texts)

    def __call__(self, value: object) -> str:
        return str(value) if self._exact else _plain_id(str(value))


def _plain_id(text: str) -> str:
    found = re.fullmatch(r"(-?)0*(\d{1,20})(?:\.0+)?", text.strip())
    return f"{found[1]}{found[2]}" if found else text


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
        raise OtherDocument(f"{path}: holds a JSON {type(document).__name__}, not an object; {_REMEDY}")
    for key, fields in _REQUIRED.items():
        entries = document.get(key)
        if not isinstance(entries, list):
            what = f"{key!r} is no list" if key in document else f"has no {key!r}"
            other = not {"images", "annotations"} <= document.keys()
            raise (OtherDocument if other else DataError)(f"{path}: {what}; {_REMEDY}")
        for position, entry in enumerate(entries):
            missing = [name for name in fields if not isinstance(entry, dict) or entry.get(name) is None]
            # Captions carry no category: the sentence about boxes below is clearer.
            if missing and missing != ["category_id"]:
                raise DataError(f"{path}: {key}[{position}] has no {listing(missing)}; {_REMEDY}")
    annotations = document["annotations"]
    for annotation in annotations:
        if not annotation.get("bbox"):
            annotation |= box_around(annotation.get("segmentation"))
    if annotations and not any("bbox" in annotation for annotation in annotations):
        raise DataError(f"{path}: none of its {len(annotations)} annotations has a bbox; {_REMEDY}")
    return document


def read_boxes(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a detection set; boxes are in pixels of the stored image, crowd annotations are kept and marked.

    Without `classes`, the classes are the categories that have at least one usable annotation, ordered by id.
    With `classes`, categories are mapped by name and others that have annotations become `TaskSet.unknown`.
    Raises DataError if no annotation of the set is usable, or an annotated image cannot be read.
    """
    assert found.annotation is not None
    notes = _Notes()
    document, source = found.document, found.annotation
    ids, categories = (_Ids(entry["id"] for entry in document[key]) for key in ("images", "categories"))
    names = _category_names(document["categories"], categories)
    files = _match_files(document["images"], found, ids, notes)
    raws = _read_annotations(document, files, ids, categories, names, notes)
    boxes = _usable_boxes(raws, found.units, notes)
    every = [box for some in boxes.values() for box in some]
    crowded = [path.name for path, some in boxes.items() if len(some) > MAX_BOXES]
    notes.add(f"images with more than {MAX_BOXES} boxes (training takes the largest)", *crowded)
    if not every:
        why = "; ".join((*notes.lines(), *found.notes)) or "it holds none"
        raise DataError(
            f"{source}: no usable annotation on any of its {len(files)} images on disk ({why}); it lists the classes "
            f"{listing(names.values(), 10) or '(none)'}; check that images and annotations belong together"
        )
    if classes is None:
        # A category with crowd regions only cannot be trained on.
        classes = _names_in_use(names, (box for box in every if not box.crowd))
        if not classes:
            raise DataError(f"{source}: all {len(every)} annotations are crowds; annotate single objects")
    in_use = _names_in_use(names, every)
    known = NameIndex(classes)
    unknown = tuple(name for name in in_use if known(name) is None)
    extra = {name: len(classes) + position for position, name in enumerate(unknown)}
    labels = {key: extra[name] if name in extra else known(name) for key, name in names.items()}
    records = [_record(path, boxes.get(path, []), labels) for path in sorted(set(files.values()), key=_order)]
    every_note = (*found.notes, *notes.lines())
    return TaskSet("det", found.split, found.layout, tuple(classes), tuple(records), unknown, every_note)


def _order(path: Path) -> tuple[str, str]:
    return path.name, str(path)


def _category_names(categories: list[dict[str, Any]], ids: _Ids) -> dict[str, str]:
    """Return category id -> name, ordered by id; a name may itself be an object that holds the name."""

    def by_id(entry: dict[str, Any]) -> tuple[int, int, str]:
        text = ids(entry["id"])
        return (0, int(text), "") if re.fullmatch(r"-?\d{1,20}", text) else (1, 0, text)

    names = {}
    for entry in sorted(categories, key=by_id):
        name = entry["name"]
        if isinstance(name, dict):
            name = name.get("name", entry["id"])
        names[ids(entry["id"])] = one_form(str(name)).strip()
    return names


def _names_in_use(names: dict[str, str], boxes: Iterable[_Box]) -> tuple[str, ...]:
    """Return the names of the categories of `boxes`, ordered by id, each name once."""
    used = {box.category for box in boxes}
    return tuple(dict.fromkeys(name for key, name in names.items() if key in used))


def _match_files(entries: list[dict[str, Any]], found: Found, ids: _Ids, notes: _Notes) -> dict[str, Path]:
    """Return image id -> file on disk."""
    index = FileIndex(found.images)
    several = Counter(str(entry["file_name"]) for entry in entries)
    files: dict[str, Path] = {}
    names: dict[str, str] = {}
    for entry in entries:
        key, name = ids(entry["id"]), str(entry["file_name"])
        candidates = index.find(name)
        if key in files:
            notes.add("image ids listed more than once (the first counts)", str(entry["id"]))
        elif not candidates:
            notes.add("listed images that are not on disk (skipped)", _shown(name))
        elif len(candidates) > 1 and several[name] > 1:
            notes.add("listed names that several files in different folders have (skipped)", name)
        else:
            if len(candidates) > 1:
                notes.add("listed names that several files have (the first in order is taken)", name)
            files[key], names[key] = min(candidates), name
    for key in far_names(files, names):
        del files[key]
        notes.add("listed images that are not on disk (skipped)", _shown(names[key]))
    used = set(files.values())
    notes.add("image files that the annotation file does not list (not used)",
              *(path.name for path in found.images if path not in used))  # fmt: skip
    return files


def _shown(name: str) -> str:
    """Return the last part of a listed name, or all of it if that is empty or a dot."""
    return PurePosixPath(name.replace("\\", "/")).name or name


@dataclass(frozen=True)
class _Raw:
    """One annotation as it is written: id of its category, four numbers, file and frame of its image."""

    label: str
    category: str
    box: Four
    path: Path
    view: View
    entry: dict[str, Any]


def _read_annotations(
    document: dict[str, Any], files: dict[str, Path], ids: _Ids, categories: _Ids, names: dict[str, str], notes: _Notes
) -> list[_Raw]:
    """Return the annotations with four numbers on images that are there."""
    frames = {ids(entry["id"]): entry for entry in reversed(document["images"])}
    views: dict[str, View] = {}
    raws: list[_Raw] = []
    seen: set[str] = set()
    for position, annotation in enumerate(document["annotations"]):
        key, category = ids(annotation["image_id"]), categories(annotation.get("category_id"))
        label = f"id {annotation['id']}" if "id" in annotation else f"annotations[{position}]"
        if key not in frames:
            notes.add("annotations of images that are not listed (skipped)", label)
        if key not in files:
            continue
        if category not in names:
            notes.add("annotations whose category is not listed (dropped)", label)
            continue
        if label in seen:
            notes.add("annotation ids used more than once (all kept)", label)
        seen.add(label)
        box = four_numbers(annotation.get("bbox"))
        if box is None:
            notes.add("annotations whose box is not four finite numbers (dropped)", label)
            continue
        if key not in views:
            size = frames[key].get("width"), frames[key].get("height")
            views[key] = View.of(files[key], size, notes.add)
        raws.append(_Raw(label, category, box, files[key], views[key], annotation))
    return raws


def _usable_boxes(raws: list[_Raw], units: Units | None, notes: _Notes) -> dict[Path, list[_Box]]:
    """Return the usable boxes of every image that has any; without `units` the numbers decide what they are."""
    if units is None:
        areas = [number(raw.entry.get("area")) for raw in raws]
        units = guess_units([raw.box for raw in raws], [raw.view.frame for raw in raws], areas)
        if units != Units():
            notes.add_sentence(f"boxes are read as {units}: COCO's x y width height in pixels does not fit them")
    boxes: dict[Path, list[_Box]] = defaultdict(list)
    for raw in raws:
        usable = _usable_box(raw, units, notes)
        if usable is not None:
            boxes[raw.path].append(usable)
    return boxes


def _usable_box(raw: _Raw, units: Units, notes: _Notes) -> _Box | None:
    """Check one annotation and clip it to its image; None if nothing is left of it."""
    view, entry = raw.view, raw.entry
    x, y, w, h = units.to_sizes(raw.box, *view.frame)
    turned = (min(x, x + w), min(y, y + h), abs(w), abs(h))
    if min(w, h) < 0 < min(turned[2:]) and min(turned) >= 0 and x <= view.frame[0] and y <= view.frame[1]:
        notes.add("boxes of negative width or height (read from the opposite corner)", raw.label)
        x, y, w, h = turned
    if w <= 0 or h <= 0:
        notes.add("boxes without width or height (dropped)", raw.label)
        return None
    corners = view.corners(x, y, w, h)
    limits = (view.width, view.height, view.width, view.height)
    x1, y1, x2, y2 = clipped = tuple(min(max(value, 0.0), limit) for value, limit in zip(corners, limits))
    if x2 <= x1 or y2 <= y1:
        notes.add("boxes outside their image (dropped)", raw.label)
        return None
    # COCO's own boxes stick out by rounding errors; only more than a pixel is worth a word.
    if any(abs(before - after) > 1 for before, after in zip(corners, clipped)):
        notes.add("boxes that stick out of their image (clipped)", raw.label)
    area = number(entry.get("area")) if units == Units() else None
    scaled = area * view.scale_x * view.scale_y if area is not None and area > 0 else 0.0
    if not 0 < scaled < _LARGEST:
        scaled = (x2 - x1) * (y2 - y1)
    crowd = bool(number(entry.get("iscrowd")) or entry.get("iscrowd") is True)
    return _Box(raw.category, (x1, y1, x2, y2), crowd, scaled)


def _record(path: Path, boxes: list[_Box], labels: dict[str, int | None]) -> Record:
    return Record(
        path,
        boxes=torch.tensor([box.corners for box in boxes], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([labels[box.category] for box in boxes], dtype=torch.int64),
        crowd=torch.tensor([box.crowd for box in boxes], dtype=torch.bool),
        area=torch.tensor([box.area for box in boxes], dtype=torch.float32),
    )
