"""Says which usual exports lie below a folder that are not read, and what to do instead."""

from __future__ import annotations

import re
from itertools import islice

from data.images import IMAGE_SUFFIXES
from data.layouts.tree import Tree
from data.types import Task

_BOXES = "export COCO JSON, YOLO text files or VOC XML files"
_MASKS = "draw its polygons into a PNG per image whose index is the class (pycocotools: `annToMask`)"
_PANOPTIC = "paint the pixels of each segment with the index of its class, into a PNG per image"
_FOLDERS = "put the images of each class into a folder of its name"
_LABELS = (
    r'(?s)\A(?!.*"(bbox|shapes|regions|polygon|points|objects|segments_info)").*"(category_id|label|label_id)"\s*:'
)
_COLUMN = r"\A(?!.*\bx(?:_?min|1)?\b).*\b(target|y|id|wnid)\b"
"""A first line that names a column of labels, and no corner of a box."""
_BY_NAME = rf'\A\s*\{{\s*"[^"]+\.({"|".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})"\s*:\s*["\d]'
"""The beginning of an object that gives a name or a number for the name of an image."""
_KINDS: tuple[tuple[Task, str, str, str, str], ...] = (
    ("det", ".csv", r"\bx_?min\b|region_shape_attributes", "boxes in a table", _BOXES),
    ("det", ".xml", r"<annotations[\s>]", "boxes in CVAT's own form", _BOXES),
    ("det", ".json", r'"shapes"\s*:', "boxes in LabelMe's form", f"{_BOXES} (`pip install labelme2coco`)"),
    ("det", ".json", r'"(shape_attributes|rectanglelabels|dm_format_version)"', "boxes in its tool's form", _BOXES),
    ("seg", ".json", r'"(shapes|segmentation|shape_attributes|polygon)"', "polygons", _MASKS),
    ("seg", ".json", r'"segments_info"\s*:', "the classes of COCO's panoptic masks", _PANOPTIC),
    ("seg", ".xml", r"<(polygon|mask)[\s>]", "polygons", _MASKS),
    ("cls", ".csv", rf"\b(label|class|category)|{_COLUMN}", "labels in a table", _FOLDERS),
    ("cls", ".txt", r"(?m)^\S+[ \t]+-?\d+$", "labels in a list", _FOLDERS),
    ("cls", ".json", rf"{_LABELS}|{_BY_NAME}", "labels in a document", _FOLDERS),
    ("cls", ".xml", r"<tag\s+label=", "labels in CVAT's own form", _FOLDERS),
)
"""Task, ending, what such a file holds near its beginning, how it is called, and the remedy."""
_MAX_FILES, _MAX_CHARACTERS = 50, 1_000_000


def passed_over(tree: Tree, task: Task) -> list[str]:
    """Return a sentence about the first file of each kind that holds what a task needs in a form that is not read."""
    found = []
    for _, ending, pattern, what, remedy in (kind for kind in _KINDS if kind[0] == task):
        files = (folder.path / name for folder in tree.folders for name in folder.with_suffix({ending}))
        for path in islice(files, _MAX_FILES):
            try:
                with path.open(encoding="utf-8", errors="replace") as file:
                    text = file.read(_MAX_CHARACTERS)
            except OSError:
                continue
            if re.search(pattern, text, re.IGNORECASE):
                found.append(f"{path} is not read, it holds {what}: {remedy}")
                break
    return found
