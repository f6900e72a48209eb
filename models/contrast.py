"""How much a box stands out from what surrounds it, by the features of a public network.

Shape suffixes: B batch, T boxes, C channels. Boxes are cx cy w h, as fractions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.regions import pool_boxes

MARGIN = 1.5
"""Sides of a box with its surroundings, in sides of the box."""
NOISE = 0.5
"""Added to the variance inside a box, so that a flat patch is no object."""
LARGER = 0.25
"""Power of a box's area: of two that stand out alike the larger one is rather a whole object."""
EDGE = 0.6
"""What each side of the image that a box touches beyond the first leaves of its score: background reaches the edges."""


def contrast(maps: Sequence[Tensor], evidence_B1HW: Tensor, boxes_BT4: Tensor) -> Tensor:
    """Scores (B, T) of boxes: squared distance of the features inside from those around, over the variance inside.

    Counted by how much speaks for any class inside, how much of the surroundings is visible, and the constants above.

    Args:
        maps: (B, C_i, H_i, W_i), each channel with mean 0 and deviation 1 over many images.
        evidence_B1HW: how sure the network is of its best classes, cell by cell, over any range.
        boxes_BT4: float32.
    """
    centre, size = boxes_BT4.split(2, dim=-1)
    low, high = ((centre + sign * MARGIN * size / 2).clamp(0, 1) for sign in (-1, 1))
    around = torch.cat([(low + high) / 2, high - low], dim=-1)
    area, whole = size.prod(-1), (high - low).prod(-1)
    ring = (whole - area).clamp(min=1e-4)
    distance, variance = torch.zeros_like(area), torch.zeros_like(area)
    for features in maps:
        inside, outside = pool_boxes(features, boxes_BT4), pool_boxes(features, around)
        beside = (outside * whole[..., None] - inside * area[..., None]) / ring[..., None]
        distance = distance + (inside - beside).square().mean(-1)
        variance = variance + (pool_boxes(features.square(), boxes_BT4) - inside.square()).mean(-1)
    visible = (ring / (area * (MARGIN**2 - 1))).clamp(max=1)
    touched = ((centre - size / 2 < 0.01).sum(-1) + (centre + size / 2 > 0.99).sum(-1) - 1).clamp(min=0)
    sure = pool_boxes(F.instance_norm(evidence_B1HW), boxes_BT4)[..., 0].sigmoid()
    return sure * EDGE**touched * visible**0.5 * area**LARGER * distance / (NOISE + variance.clamp(min=0))
