"""A teacher's masks corrected by annotated boxes, which say where a class is and where it is not.

Source: boxes as weak labels of masks, Khoreva et al., "Simple does it", arXiv 1603.07485, section 3.1, where a
network's own masks are cut to the boxes. Here they are the previous stage's, and what boxes say shifts logits instead
of cutting: a box holds other things, too, and crowds and objects that a crop leaves little of have none.

Shape suffixes: B images, K classes of masks, M objects, H, W sides of the masks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.boxes import to_xyxy
from models.matcher import Objects
from models.targets import Targets

INSIDE, OUTSIDE = 2.2, -3.3
"""Change of a class's logit by Bayes' rule, if boxes take a fifth of the image, their objects fill them to a half, and
one pixel of a class in thirty lies outside of all its boxes. Neither was searched for."""


def within_boxes(logits_BKHW: Tensor, targets: Targets, mask_class: Tensor) -> Tensor:
    """The logits, float32, of masks as boxes correct them, in images that are annotated with boxes and no mask.

    Classes that `mask_class` names (see `Stage`) are raised inside their boxes and lowered outside.
    """
    batch, classes, height, width = logits_BKHW.shape
    objects = Objects.of(targets)
    plane_M = objects.image * (classes + 1) + mask_class[objects.labels]
    covered = covers(objects.boxes, height, width).flatten(1)
    count = torch.zeros(batch * (classes + 1), height * width, device=logits_BKHW.device)
    count.index_add_(0, plane_M, covered)
    inside = count.view(batch, classes + 1, height, width)[:, :classes] > 0
    shift = torch.where(inside, INSIDE, OUTSIDE)
    named_K = torch.zeros(classes + 1, device=logits_BKHW.device).index_fill_(0, mask_class, 1)[:classes]
    boxed_B = targets.has_boxes & ~targets.has_masks
    return logits_BKHW.float() + shift * (boxed_B[:, None] * named_K)[:, :, None, None]


def covers(boxes_M4: Tensor, height: int, width: int) -> Tensor:
    """Cells (M, H, W) that boxes cx cy w h touch: 1 there, 0 elsewhere."""
    x1, y1, x2, y2 = (side[:, None] for side in to_xyxy(boxes_M4).unbind(1))
    x = torch.arange(width, device=boxes_M4.device) / width
    y = torch.arange(height, device=boxes_M4.device) / height
    columns_MW = (x + 1 / width > x1) & (x < x2)
    rows_MH = (y + 1 / height > y1) & (y < y2)
    return (rows_MH[:, :, None] & columns_MW[:, None]).float()
