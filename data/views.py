"""Random views of packed images: crops of any shape, resized to one side, recoloured and mixed, a whole batch at once.

All choices are drawn on the CPU, so that they follow from the generator alone; pixels are read where the images lie.
Shape suffixes: B batch, S side of the views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from data.photos import PackedImages


@dataclass(frozen=True)
class ViewConfig:
    """How a photograph is varied."""

    area: float = 0.14
    """Smallest share of an image that a crop shows."""
    pixels: int = 56
    """Least side of a crop in the image's own pixels, roughly: less, enlarged, shows nothing."""
    aspect: float = 4 / 3
    """Largest ratio by which a crop is stretched."""
    color: float = 0.3
    """Largest relative change of brightness, contrast and saturation."""


@dataclass(frozen=True)
class Crops:
    """Where views are taken from.

    index: int64 (B,), images; boxes: float32 (B, 4), y, x, height, width in pixels; flip: bool (B,).
    """

    index: Tensor
    boxes: Tensor
    flip: Tensor


def random_views(images: PackedImages, count: int, side: int, config: ViewConfig, generator: Generator) -> Tensor:
    """Views float32 (B, 3, S, S) in 0..1 of images drawn by their weights, each mixed with another one.

    Random resized crops (arXiv 1409.4842, section 6), mirrored or not; mixed by a share uniform in 0..1 (mixup, arXiv
    1710.09412), which function matching takes for every batch (arXiv 2106.05237).
    """
    index = torch.multinomial(images.weights, count, replacement=True, generator=generator)
    crops = random_crops(images.sizes[index], index, config, generator)
    views = read(images, crops, side)
    factors = 1 + config.color * (2 * torch.rand(3, count, 1, 1, 1, generator=generator) - 1)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    views = recoloured(views, factors.to(views.device, non_blocking=True))
    return torch.lerp(views.roll(1, 0), views, share.to(views.device, non_blocking=True))


def random_crops(sizes_B2: Tensor, index: Tensor, config: ViewConfig, generator: Generator) -> Crops:
    """Crops that lie within their images, whose sizes are given."""
    height, width = sizes_B2.float().unbind(1)
    area = height * width
    least = (config.pixels**2 / area).clamp(config.area, 1.0)
    shown = area * (least + (1 - least) * torch.rand(len(area), generator=generator))
    stretch = torch.exp(math.log(config.aspect) * (2 * torch.rand(len(area), generator=generator) - 1))
    h = torch.minimum((shown / stretch).sqrt(), height)
    w = torch.minimum((shown * stretch).sqrt(), width)
    y = (height - h) * torch.rand(len(area), generator=generator)
    x = (width - w) * torch.rand(len(area), generator=generator)
    return Crops(index, torch.stack([y, x, h, w], dim=1), torch.rand(len(area), generator=generator) < 0.5)


def read(images: PackedImages, crops: Crops, side: int) -> Tensor:
    """Crops (B, 3, S, S), float32 in 0..1, interpolated bilinearly; pixel centres as in `F.interpolate`."""
    device, count = images.pixels.device, len(crops.index)
    drawn = (images.sizes[crops.index], images.starts[crops.index], crops.boxes, crops.flip)
    sizes, starts, boxes, flip = (t.to(device, non_blocking=True) for t in drawn)
    steps = (torch.arange(side, device=device) + 0.5) / side
    across = torch.where(flip[:, None], 1 - steps, steps)
    above, below, down = neighbours(boxes[:, :1] + boxes[:, 2:3] * steps - 0.5, sizes[:, :1])
    left, right, along = neighbours(boxes[:, 1:2] + boxes[:, 3:] * across - 0.5, sizes[:, 1:])

    def pixels(row_BS: Tensor, column_BS: Tensor) -> Tensor:
        positions = (starts[:, None] + row_BS * sizes[:, 1:])[:, :, None] + column_BS[:, None]
        return images.pixels[positions].view(torch.uint8).view(count, side, side, 4).float()

    along, down = along[:, None, :, None], down[:, :, None, None]
    upper = torch.lerp(pixels(above, left), pixels(above, right), along)
    lower = torch.lerp(pixels(below, left), pixels(below, right), along)
    return (torch.lerp(upper, lower, down)[..., :3] / 255).permute(0, 3, 1, 2)


def neighbours(at_BS: Tensor, length_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels before and after positions along one axis, int64 (B, S), and the share of the second."""
    at = at_BS.clamp(min=0).minimum((length_B1 - 1).float())
    first = at.long()
    return first, torch.minimum(first + 1, length_B1 - 1), at - first


def recoloured(views: Tensor, factors: Tensor) -> Tensor:
    """Views with another brightness, contrast and saturation: factors (3, B, 1, 1, 1), 1 changes nothing."""
    brightness, contrast, saturation = factors
    views = views * brightness
    views = torch.lerp(views.mean((1, 2, 3), keepdim=True), views, contrast)
    return torch.lerp(views.mean(1, keepdim=True), views, saturation).clamp(0, 1)
