"""Boxes from masks: the objects that a semantic mask outlines, of classes that a detection set names, too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from data.types import VOID

OUTLINE = 5
"""Pixels of the void line that Pascal VOC draws around an object; the inner half is the object's own."""
SMALLEST = 0.02
"""Least side of a box, as a share of the mask's longer one: smaller regions are mostly pieces of a hidden object."""


def mask_boxes(mask: np.ndarray, labels: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes x1 y1 x2 y2 of connected regions, float32 (n, 4) in pixels, and their labels, int64 (n,).

    The void line keeps objects of one class apart that touch. What hides the middle of an object makes two boxes of it.

    Args:
        mask: uint8 (H, W), as it was annotated: shrunk, the line has gaps.
        labels: class of the mask -> label of its boxes; other classes get none.
    """
    boxes, found = [], []
    for value in np.intersect1d(mask, list(labels)).tolist():
        regions, _ = ndimage.label(mask == value)
        regions = np.where(mask == VOID, ndimage.grey_dilation(regions, size=(OUTLINE, OUTLINE)), regions)
        for rows, columns in ndimage.find_objects(regions):
            if min(rows.stop - rows.start, columns.stop - columns.start) >= SMALLEST * max(mask.shape):
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                found.append(labels[value])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(found, dtype=torch.int64)
