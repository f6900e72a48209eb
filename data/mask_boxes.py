"""Boxes from masks: the objects that a semantic mask outlines, of classes that a detection set names, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from data.classes import NameIndex, normal_name
from data.layouts.class_names import BACKGROUND
from data.types import VOID

OUTLINE = 5
"""Pixels of the void line that Pascal VOC draws around an object; the inner half is the object's own."""
SMALLEST = 0.02
"""Least side of a box, as a share of the mask's longer one: smaller regions are mostly pieces of a hidden object."""


def box_labels(mask_classes: Sequence[str], box_classes: Sequence[str]) -> dict[int, int]:
    """Class of masks -> label of boxes, for the objects that bear the same name in both; background is none."""
    position = NameIndex(box_classes)
    objects = {i: name for i, name in enumerate(mask_classes) if normal_name(name) not in BACKGROUND}
    found = {i: position(name) for i, name in objects.items()}
    return {i: label for i, label in found.items() if label is not None}


def mask_boxes(mask: np.ndarray, labels: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes x1 y1 x2 y2 of connected regions, float32 (n, 4) in pixels, and their labels, int64 (n,).

    The void line keeps objects of one class apart that touch; without one they share a box. What hides the middle of an
    object makes two boxes of it.

    Args:
        mask: uint8 (H, W), as it was annotated: shrunk, the line has gaps.
        labels: class of the mask -> label of its boxes; other classes get none.
    """
    regions = np.zeros(mask.shape, dtype=np.int32)
    found: list[int] = []
    for value in np.intersect1d(mask, list(labels)).tolist():
        numbered, count = ndimage.label(mask == value)
        regions += np.where(numbered, numbered + len(found), 0)
        found += [labels[value]] * count
    regions = np.where(mask == VOID, ndimage.grey_dilation(regions, size=(OUTLINE, OUTLINE)), regions)
    corners = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(regions)]
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    large = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST * max(mask.shape)).all(1)
    return boxes[large], torch.tensor(found, dtype=torch.int64)[large]
