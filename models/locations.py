"""Locations, the cells of all maps: their ranking as object candidates, and the nearest one to a box.

Shape suffixes: B batch, P locations, N boxes.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from models.boxes import constant

NOT_A_PEAK = 100.0
"""What a location with a surer neighbour loses in the ranking of logits."""
CELLS_PER_REFERENCE = 2.0
"""Side of a location's reference box, in cells of its level."""


@torch.no_grad()
def peak_scores(logits_BPC: Tensor, maps: list[Tensor]) -> Tensor:
    """Scores (B, P) that locations are chosen by: the surest class, but lower than all others beside a surer neighbour.

    Without the latter a few large objects, each with many sure locations, take up all queries. Source: peaks of
    CenterNet's heatmap, arXiv 1904.07850, section 4. Where there are no classes all locations are alike.
    """
    sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
    logits = logits_BPC.float()
    conf_BP = logits.amax(-1) if logits.shape[-1] else logits.new_zeros(logits.shape[:-1])
    levels = []
    for conf, size in zip(conf_BP.split([h * w for h, w in sizes], dim=1), sizes):
        level = rearrange(conf, "b (y x) -> b 1 y x", y=size[0])
        levels.append(level - NOT_A_PEAK * (level < F.max_pool2d(level, 3, stride=1, padding=1)))
    return torch.cat([rearrange(level, "b 1 y x -> b (y x)") for level in levels], dim=1)


def nearest_locations(boxes_BN4: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Index (B, N) of the location whose reference box is nearest in position and size to each box.

    On each level, of `sizes` (height, width), that is the cell that holds the box's centre; of the levels, the one
    whose references have the most similar area.
    """
    found, distance, start = [], [], 0
    for height, width in sizes:
        grid = constant(boxes_BN4, width, height)
        cell = (boxes_BN4[..., :2] * grid).floor().clamp(min=0).minimum(grid - 1)
        shift = (boxes_BN4[..., :2] * grid - cell - 0.5).abs().sum(-1) / CELLS_PER_REFERENCE
        zoom = (boxes_BN4[..., 2:].clamp(min=1e-4) * grid / CELLS_PER_REFERENCE).log().sum(-1).abs()
        distance.append(shift + zoom / 2)
        found.append(start + (cell[..., 1] * width + cell[..., 0]).long())
        start += height * width
    nearest = torch.stack(distance).argmin(0, keepdim=True)
    return torch.stack(found).gather(0, nearest)[0]
