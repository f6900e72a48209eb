"""Boxes from masks: every connected region of one class is an object whose class is not told.

Segmentation images thus teach where objects are before the first box was drawn by a person. Nothing but their own
masks is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import find_objects, label
from torch import Tensor

from models.targets import UNNAMED, VOID, Targets

STEP = 2
"""Regions are looked for in every second row and column: four times faster, and boxes are good to two pixels."""
SMALLEST = 4
"""A region with fewer cells a side is left out: it is hardly an object but a remnant of one."""


def with_regions(targets: Targets) -> Targets:
    """The same targets, with boxes of regions for the images that have a mask and no boxes."""
    boxes, labels, has_boxes = list(targets.boxes), list(targets.labels), targets.has_boxes.clone()
    for b, mask in enumerate(targets.masks):
        if not has_boxes[b] and bool((mask != VOID).any()):
            boxes[b] = region_boxes(mask)
            labels[b] = torch.full((len(boxes[b]),), UNNAMED)
            has_boxes[b] = True
    return replace(targets, boxes=boxes, labels=labels, has_boxes=has_boxes)


def region_boxes(mask_HW: Tensor) -> Tensor:
    """Boxes float32 (n, 4), cx cy w h as fractions, of the connected regions of a mask; 0 is no object, nor is void."""
    cells = mask_HW[::STEP, ::STEP].numpy()
    height, width = cells.shape
    found = []
    for value in np.unique(cells):
        if value in (0, VOID):
            continue
        for rows, columns in find_objects(label(cells == value)[0]):
            box = columns.start, rows.start, columns.stop, rows.stop
            if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST:
                found.append(box)
    corners = torch.tensor(found, dtype=torch.float32).reshape(-1, 4) / torch.tensor([width, height, width, height])
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
