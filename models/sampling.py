"""Weighted means of feature maps at points between their cells, in two ways that compute the same.

Shape suffixes: B batch, T tokens, H heads, L levels, P points a head and level, S = H * L * P samples of a token,
D width. Points are fractions of the image; values are bilinear between the centres of cells and 0 outside.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F


class GridMaps:
    """Reads maps level by level with torch's grid sampling, in float32: the faster way back in training."""

    def __init__(self, maps: list[Tensor], locations_BPD: Tensor | None = None) -> None:
        """Take the levels as (B, D, h, w); their cells in a row are for the other way."""
        self.maps = [m.float().contiguous() for m in maps]

    def mean(self, points_BT2HLP: Tensor, weight_BTHLP: Tensor) -> Tensor:
        """Weighted mean (B, T, D) over points (x before y), head by head over its own channels."""
        B, T, H = weight_BTHLP.shape[:3]
        grids = rearrange(2 * points_BT2HLP - 1, "b t xy h l p -> l (b h) t p xy")
        weights = rearrange(weight_BTHLP, "b t h l p -> l (b h) 1 t p")
        total = points_BT2HLP.new_zeros(B * H, self.maps[0].shape[1] // H, T)
        for values, grid, weight in zip(self.maps, grids, weights):
            per_head = rearrange(values, "b (h e) y x -> (b h) e y x", h=H)
            found = F.grid_sample(per_head, grid, padding_mode="zeros", align_corners=False)
            total = total + (found * weight).sum(-1)
        return rearrange(total, "(b h) e t -> b t (h e)", h=H)


class RowTable:
    """Picks the cells around all points of all levels as rows of one table: the faster way when nothing is learnt."""

    def __init__(self, maps: list[Tensor], locations_BPD: Tensor) -> None:
        """Take the levels as (B, D, h, w), and their cells one after the other."""
        self.table_BPD = locations_BPD
        self.sizes = torch.tensor([(m.shape[-1], m.shape[-2]) for m in maps], device=locations_BPD.device)

    def mean(self, points_BT2HLP: Tensor, weight_BTHLP: Tensor) -> Tensor:
        """Weighted mean (B, T, D) over points (x before y), head by head over its own channels."""
        H, P = points_BT2HLP.shape[3], points_BT2HLP.shape[5]
        B, locations = self.table_BPD.shape[:2]
        size_2S, start_S = self.of_samples(H, P)
        cells, near = around(rearrange(points_BT2HLP, "b t xy h l p -> b t xy (h l p)"), size_2S.float())
        # Whole numbers, since float16, to which an exported model may be converted, counts no further than 2048.
        (x, y), (near_x, near_y) = cells.int().unbind(2), near.unbind(2)  # each (B, T, 2, S)
        index = (y[:, :, :, None] * size_2S[0] + x[:, :, None]) * H + start_S
        weight = rearrange(weight_BTHLP, "b t h l p -> b t 1 1 (h l p)")
        share = near_y[:, :, :, None] * near_x[:, :, None] * weight
        index, share = (rearrange(t, "b t y x (h s) -> b (t h) (y x s)", h=H) for t in (index, share))
        image = torch.arange(B, device=index.device)[:, None, None] * (locations * H)
        rows = rearrange(self.table_BPD, "b p (h e) -> (b p h) e", h=H)
        rows = rows.index_select(0, rearrange(index.long() + image, "b q s -> (b q s)"))
        rows = rearrange(rows, "(b q s) e -> b q s e", b=B, q=share.shape[1])
        return rearrange(share[:, :, None].to(rows.dtype) @ rows, "b (t h) 1 e -> b t (h e)", h=H)

    def of_samples(self, heads: int, points: int) -> tuple[Tensor, Tensor]:
        """Width and height (2, S) of each sample's level, and where that level's rows of its head begin (S,)."""
        size = self.sizes.T
        area = size[0] * size[1]
        head = torch.arange(heads, device=size.device)[:, None]
        start = (area.cumsum(0) - area) * heads + head
        size = repeat(size, "xy l -> xy (h l p)", h=heads, p=points)
        return size.int(), repeat(start, "h l -> (h l p)", p=points).int()


def around(points_BT2S: Tensor, size_2S: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells (B, T, 2, 2, S) on either side of points along each axis, and what each counts for.

    A cell outside counts 0; its number is that of the nearest one inside.
    """
    position = points_BT2S * size_2S - 0.5
    low = position.floor()
    cells = torch.stack([low, low + 1], dim=3)
    inside = cells.clamp(min=0).minimum(size_2S[:, None] - 1)
    return inside, (1 - (position[:, :, :, None] - cells).abs()) * (inside == cells)
