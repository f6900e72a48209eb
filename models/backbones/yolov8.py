"""The backbone of YOLOv8-n: three feature maps at strides 8, 16 and 32, written from its published layer table.

The table (type, output channels, stride or repeats at the width and depth of "n"), as in the YOLOv8 model file
yolov8.yaml: Conv 16 /2, Conv 32 /2, C2f 32 x1, Conv 64 /2, C2f 64 x2, Conv 128 /2, C2f 128 x2, Conv 256 /2, C2f 256 x1,
SPPF 256. No code of that project is used here; there are no weights for it under a licence that allows copying either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        filters = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        super().__init__(filters, nn.BatchNorm2d(c_out), nn.SiLU(inplace=True))


class C2f(nn.Module):
    """Half of the channels runs through residual pairs of 3x3 convolutions; all intermediate results are joined."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter = Conv(channels, channels)
        self.pairs = nn.ModuleList(nn.Sequential(Conv(half, half, 3), Conv(half, half, 3)) for _ in range(count))
        self.join = Conv(half * (2 + count), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        parts = list(self.enter(x).chunk(2, dim=1))
        for pair in self.pairs:
            parts.append(parts[-1] + pair(parts[-1]))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


class SPPF(nn.Module):
    """Joins what lies within 5, 9 and 13 cells, by pooling three times. Source: spatial pyramids, arXiv 1406.4729."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = Conv(channels, channels // 2)
        self.join = Conv(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


class YOLOv8n(nn.Module):
    """YOLOv8-n features; `channels` and `strides` describe what `forward` returns."""

    channels = (64, 128, 256)
    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stage8 = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 1), Conv(32, 64, 3, 2), C2f(64, 2))
        self.stage16 = nn.Sequential(Conv(64, 128, 3, 2), C2f(128, 2))
        self.stage32 = nn.Sequential(Conv(128, 256, 3, 2), C2f(256, 1), SPPF(256))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features at strides 8, 16, 32 with `channels`; H and W are multiples of 32."""
        fine = self.stage8(images)
        middle = self.stage16(fine)
        return [fine, middle, self.stage32(middle)]
