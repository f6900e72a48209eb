"""Features of regions of an image: means over boxes.

Shape suffixes: B batch, T boxes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.boxes import to_xyxy


def pool_boxes(map_BDHW: Tensor, boxes_BT4: Tensor) -> Tensor:
    """Mean of a feature map over each box (cx, cy, w, h as fractions), exact to a part of a cell: (B, T, D).

    A box's weights are products of how much of each column and row it covers; an empty box gives zeros.
    """
    height, width = map_BDHW.shape[-2:]
    corners = to_xyxy(boxes_BT4.float())
    across = coverage(corners[..., 0], corners[..., 2], width)
    down = coverage(corners[..., 1], corners[..., 3], height)
    weights = (down[..., :, None] * across[..., None, :]).flatten(2)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    return weights.to(map_BDHW.dtype) @ map_BDHW.flatten(2).transpose(1, 2)


def coverage(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Share (..., cells) of each of `cells` equal parts of 0..1 that lies between `low` and `high` (...)."""
    start = torch.arange(cells, device=low.device)
    low, high = low[..., None] * cells, high[..., None] * cells
    return (torch.minimum(high, start + 1) - torch.maximum(low, start)).clamp(0, 1)
