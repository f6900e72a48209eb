"""Weighted means of feature maps at points between their cells, in two ways that compute the same.

Shape suffixes: B batch, T tokens, H heads, L levels, P points a head and level, D width. Points are fractions of the
image; values are bilinear between the centres of cells and 0 outside.
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

    def mean(self, x_BTHLP: Tensor, y_BTHLP: Tensor, weight_BTHLP: Tensor) -> Tensor:
        """Weighted mean (B, T, D) over points, head by head over its own channels."""
        B, T, H = weight_BTHLP.shape[:3]
        D = self.maps[0].shape[1]
        point = torch.stack([x_BTHLP, y_BTHLP], dim=-1)
        grid = (2 * point - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B*H, T, P, 2)
        weight = weight_BTHLP.permute(3, 0, 2, 1, 4).flatten(1, 2)  # (L, B*H, T, P)
        total = x_BTHLP.new_zeros(B * H, D // H, T)
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
        self.sizes = [(m.shape[-1], m.shape[-2]) for m in maps]

    def mean(self, x_BTHLP: Tensor, y_BTHLP: Tensor, weight_BTHLP: Tensor) -> Tensor:
        """Weighted mean (B, T, D) over points, head by head over its own channels."""
        B, T, H, L, P = weight_BTHLP.shape
        places, D = self.table_BPD.shape[1:]
        # One number a sample of a token, S = H * L * P of them: what is small is cheapest as one long row.
        width, height, start = (
            c.float().expand(H, P, L).transpose(1, 2).flatten() for c in self.constants(x_BTHLP.device)
        )
        head = torch.arange(H, device=x_BTHLP.device).repeat_interleave(L * P)
        x, y, weight = (t.flatten(2) for t in (x_BTHLP, y_BTHLP, weight_BTHLP))
        column, near_x = around(x, width)
        row, near_y = around(y, height)
        share = near_y[:, None] * near_x * weight  # (2, 2, B, T, S)
        image = torch.arange(B, device=x.device)[:, None, None] * (places * H)
        index = ((row[:, None] * width + column + start) * H + head).long() + image
        index, share = (t.view(4, B * T * H, L * P).transpose(0, 1).flatten(1) for t in (index, share))
        rows = self.table_BPD.reshape(-1, D // H).index_select(0, index.flatten()).unflatten(0, index.shape)
        return (share[:, None].to(rows.dtype) @ rows).view(B, T, D)

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of each level: width, height and number of its first place."""
        width, height = torch.tensor(self.sizes, device=device).T
        return width, height, (width * height).cumsum(0) - width * height


def around(fraction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells (2, ...) on either side of positions (...) along an axis of `size` cells, and what each counts for.

    A cell outside counts 0; its number is that of the nearest one inside.
    """
    position = fraction * size - 0.5
    low = position.floor()
    cells = torch.stack([low, low + 1])
    inside = cells.clamp(min=0).minimum(size - 1)
    return inside, (1 - (position - cells).abs()) * (inside == cells)
