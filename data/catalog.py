"""Loads one split of one task from whatever lies on disk, and says what it found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from data.classes import one_form
from data.images import read_mask
from data.layouts.coco import read_boxes
from data.layouts.folders import read_folders
from data.layouts.search import find_set
from data.layouts.tree import Found
from data.layouts.voc import read_masks
from data.layouts.voc_xml import xml_document
from data.layouts.yolo import yolo_document
from data.types import VOID, Fold, Record, Task, TaskSet

Part = Literal["all", "fit", "choose"]
FOLDS = len(get_args(Fold))
MAX_NOTES = 8


def _read_detection(found: Found, classes: Sequence[str] | None) -> TaskSet:
    """Read a detection set in whatever format it was found."""
    if found.pairs:
        found = xml_document(found) if found.pairs[0][1].suffix.lower() == ".xml" else yolo_document(found, classes)
    return read_boxes(found, classes)


_READERS = {"det": _read_detection, "seg": read_masks, "cls": read_folders}


def load_set(
    root: Path | str,
    task: Task,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    part: Part = "all",
    fold: Fold = 0,
) -> TaskSet:
    """Load the set of one task below `root`; records are ordered by file name.

    `split` None means test, else val, else everything. `classes` are those of the model (evaluation); without
    them the set's own are used (training). `part` "fit" and "choose" are a fixed 5/6 and 1/6 of the images,
    for making choices without the validation set; `fold` says which sixth. Raises DataError if the set is
    missing or unusable.
    """
    found = find_set(root, task, split, classes)
    return holdout(_READERS[task](found, classes), part, fold)


def holdout(task_set: TaskSet, part: Part, fold: Fold = 0) -> TaskSet:
    """Return a fixed part of a set: images sorted by the SHA-256 of their stem, one sixth of them is "choose".

    Of fewer than six images it is one, so that none is left to "fit" of a single image.
    The classes stay those of the whole set.
    """
    if part == "all":
        return task_set
    records = sorted(task_set.records, key=_stem_hash)
    begin, end = (round(len(records) * k / FOLDS) for k in (fold, fold + 1))
    if 0 < len(records) < FOLDS:
        begin = fold % len(records)
        end = begin + 1
    chosen = {record.image for record in records[begin:end]}
    kept = tuple(record for record in task_set.records if (record.image in chosen) == (part == "choose"))
    note = f"part {part!r}: {len(kept)} of {len(records)} images"
    return replace(task_set, records=kept, notes=(note, *task_set.notes))


def _stem_hash(record: Record) -> str:
    return hashlib.sha256(one_form(record.image.stem).encode("utf-8", "surrogateescape")).hexdigest()


def summary(task_set: TaskSet) -> str:
    """Describe a set in aligned lines: layout, split, images, amount per class, notes. Reads every mask."""
    counts, unit = _COUNTS[task_set.task](task_set)
    total = sum(counts.values())
    lines = [
        f"{task_set.task}  {task_set.split}: {len(task_set.records)} images, {len(task_set.classes)} classes",
        f"  layout  {task_set.layout}",
        f"  {unit}",
    ]
    names = (*task_set.classes, *(f"{name} (unknown)" for name in task_set.unknown))
    width = max(len(name) for name in names)
    for label, name in enumerate(names):
        share = counts[label] / total if total else 0.0
        lines.append(f"    {name:<{width}}  {counts[label]:>9}  {share:6.1%}")
    lines += [f"  note    {note}" for note in task_set.notes[:MAX_NOTES]]
    if len(task_set.notes) > MAX_NOTES:
        lines.append(f"  note    and {len(task_set.notes) - MAX_NOTES} more")
    return "\n".join(lines)


def _count_boxes(task_set: TaskSet) -> tuple[Counter[int], str]:
    counts = Counter(int(label) for record in task_set.records for label in record.labels)
    crowds = sum(int(record.crowd.sum()) for record in task_set.records)
    empty = sum(len(record.labels) == 0 for record in task_set.records)
    return counts, f"boxes per class ({crowds} of them crowd; {empty} images without box)"


def _count_pixels(task_set: TaskSet) -> tuple[Counter[int], str]:
    pixels = np.zeros(256, dtype=np.int64)
    for record in task_set.records:
        pixels += _mask_histogram(record, len(task_set.classes))
    void = pixels[VOID] / max(int(pixels.sum()), 1)
    return Counter(dict(enumerate(pixels[:VOID].tolist()))), f"pixels per class ({void:.1%} of all are void)"


def _mask_histogram(record: Record, num_classes: int) -> np.ndarray:
    assert record.mask is not None
    return np.bincount(read_mask(record.mask, num_classes, coding=record.coding).ravel(), minlength=256)


def _count_images(task_set: TaskSet) -> tuple[Counter[int], str]:
    counts = Counter(record.label for record in task_set.records if record.label is not None)
    return counts, "images per class"


_COUNTS = {"det": _count_boxes, "seg": _count_pixels, "cls": _count_images}
