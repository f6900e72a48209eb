"""Weighted means of feature maps at points between their cells, in two ways that compute the same.

Shape suffixes: B batch, T tokens, H heads, L levels, P points a head and level, S = H * L * P samples of a token,
D width. Points are fractions of the image; values are bilinear between the centres of cells and 0 outside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class GridMaps:
    """Reads maps level by level with torch's grid sampling, in float32: the faster way back in training."""

    def __init__(self, maps: list[Tensor], places_BPD: Tensor | None = None) -> None:
        """Take the levels as (B, D, h, w); their cells in a row are for the other way."""
        self.maps = [m.float().contiguous() for m in maps]

    def mean(self, points_BT2HLP: Tensor, weight_BTHLP: Tensor) -> Tensor:
        """Weighted mean (B, T, D) over points (x before y), head by head over its own channels."""
        B, T, H = weight_BTHLP.shape[:3]
        D = self.maps[0].shape[1]
        grid = (2 * points_BT2HLP - 1).permute(4, 0, 3, 1, 5, 2).flatten(1, 2)  # (L, B*H, T, P, 2)
        weight = weight_BTHLP.permute(3, 0, 2, 1, 4).flatten(1, 2)  # (L, B*H, T, P)
        total = points_BT2HLP.new_zeros(B * H, D // H, T)
        for level, values in enumerate(self.maps):
            per_head = values.reshape(B * H, D // H, *values.shape[-2:])
            found = F.grid_sample(per_head, grid[level], padding_mode="zeros", align_corners=False)
            total = total + (found * weight[level][:, None]).sum(-1)
        return total.view(B, D, T).transpose(1, 2)


class RowTable:
    """Picks the cells around all points of all levels as rows of one table: the faster way when nothing is learnt."""

    def __init__(self, maps: list[Tensor], places_BPD: Tensor) -> None:
        """Take the levels as (B, D, h, w), and their cells one after the other."""
        self.table_BPD = places_BPD
        self.sizes = torch.tensor([(m.shape[-1], m.shape[-2]) for m in maps], device=places_BPD.device)

    def mean(self, points_BT2HLP: Tensor, weight_BTHLP: Tensor) -> Tensor:
        """Weighted mean (B, T, D) over points (x before y), head by head over its own channels."""
        B, T, _, H, L, P = points_BT2HLP.shape
        places, D = self.table_BPD.shape[1:]
        size_2S, start_S = self.of_samples(H, P)
        cells, near = around(points_BT2HLP.flatten(3), size_2S)
        (x, y), (near_x, near_y) = cells.unbind(2), near.unbind(2)  # each (B, T, 2, S)
        index = (y[:, :, :, None] * size_2S[0] + x[:, :, None]) * H + start_S
        share = near_y[:, :, :, None] * near_x[:, :, None] * weight_BTHLP.flatten(2)[:, :, None, None]
        index, share = (t.view(B, T, 4, H, L * P).transpose(2, 3).reshape(B, T * H, -1) for t in (index, share))
        image = torch.arange(B, device=index.device)[:, None, None] * (places * H)
        rows = self.table_BPD.reshape(-1, D // H).index_select(0, (index.long() + image).flatten())
        return (share[:, :, None].to(rows.dtype) @ rows.view(*share.shape, -1)).view(B, T, D)

    def of_samples(self, heads: int, points: int) -> tuple[Tensor, Tensor]:
        """Width and height (2, S) of each sample's level, and where that level's rows of its head begin (S,)."""
        size = self.sizes.T
        area = size[0] * size[1]
        head = torch.arange(heads, device=size.device)[:, None]
        start = ((area.cumsum(0) - area) * heads + head).repeat_interleave(points, dim=1)
        return size.repeat_interleave(points, dim=1).repeat(1, heads).float(), start.flatten().float()


def around(points_BT2S: Tensor, size_2S: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells (B, T, 2, 2, S) on either side of points along each axis, and what each counts for.

    A cell outside counts 0; its number is that of the nearest one inside.
    """
    position = points_BT2S * size_2S - 0.5
    low = position.floor()
    cells = torch.stack([low, low + 1], dim=3)
    inside = cells.clamp(min=0).minimum(size_2S[:, None] - 1)
    return inside, (1 - (position[:, :, :, None] - cells).abs()) * (inside == cells)
