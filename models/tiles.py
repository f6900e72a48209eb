"""Class of a region, read from pooled features by the one projection: how stage 0 trains backbone and neck.

Shape suffixes: B batch, T tiles, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.boxes import to_xyxy
from models.head import QueryHead

NO_TILE = -1
"""Label of padding among an image's tiles."""


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


def tile_logits(head: QueryHead, maps: list[Tensor], boxes_BT4: Tensor) -> list[Tensor]:
    """Class logits (B, T, C) of boxes from each map of the neck alone, read by the rows for object classes."""
    return [head.project(pool_boxes(m, boxes_BT4), "det")[0] for m in maps]


def tile_loss(logits: list[Tensor], labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy over levels and tiles, labels NO_TILE left out.

    No label smoothing: it raises the accuracy here and lowers what features are worth elsewhere (arXiv 2010.16402).
    """
    flat = labels_BT.flatten()
    return torch.stack([F.cross_entropy(x.float().flatten(0, 1), flat, ignore_index=NO_TILE) for x in logits]).mean()
