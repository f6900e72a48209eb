"""The neck: one feature pyramid layer that brings three backbone levels to one width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """One FPN layer: 1x1 laterals, top-down sums, one depthwise-separable output convolution a level.

    Source: Feature Pyramid Networks, arXiv 1612.03144, section 3; the 3x3 is depthwise-separable because a dense one
    would cost more than the whole Fast-SCNN backbone. No ReLU at the end: queries take dot products with these maps.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, 1, bias=False), nn.BatchNorm2d(dim)) for c in channels
        )
        self.output = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
                nn.BatchNorm2d(dim),
                nn.ReLU(inplace=True),
                nn.Conv2d(dim, dim, 1, bias=False),
                nn.BatchNorm2d(dim),
            )
            for _ in channels
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, c_i, H_i, W_i), finest first -> maps (B, dim, H_i, W_i)."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], maps[i].shape[-2:], mode="nearest")
        return [output(x) for output, x in zip(self.output, maps)]
