"""Accuracy of stage 0 on images that it does not learn from."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from data.class_images import ClassImages
from models.onehead import OneHead
from models.tiles import tile_logits

TILE = 64
"""Images are shown as a regular grid of tiles of about this many pixels, the side of Tiny-ImageNet's."""


@torch.no_grad()
def heldout_accuracy(model: OneHead, images: ClassImages, size: int, accelerator: Accelerator) -> dict[str, float]:
    """Share of images whose class is found from the pooled features of their tile in a grid of other images.

    "accuracy" averages the logits of the three strides; "accuracy@8" and so on read one alone. Images follow one
    another in a fixed mixed order; the last ones that fill no grid are left out.
    """
    model.eval()
    side = max(1, size // TILE)
    count = side**2
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    boxes = grid_boxes(side).to(accelerator.device)
    right = torch.zeros(4)
    total = 0
    for chunk in order.split(16 * count):
        chunk = chunk[: len(chunk) // count * count]
        if not len(chunk):
            continue
        parts = chunk.view(-1, count).tolist()
        grids = torch.stack([compose([images.images[i] for i in part], size) for part in parts])
        grids = grids.to(accelerator.device, memory_format=torch.channels_last)
        with accelerator.autocast():
            levels = tile_logits(model.head, model.features(grids), boxes.expand(len(grids), -1, -1))
        labels = images.labels[chunk].view(-1, count)
        stacked = torch.stack([x.float().cpu() for x in levels])
        for i, logits in enumerate([stacked.log_softmax(-1).mean(0), *stacked]):
            right[i] += (logits.argmax(-1) == labels).sum()
        total += labels.numel()
    names = ("accuracy", "accuracy@8", "accuracy@16", "accuracy@32")
    return {n: round(float(r) / max(1, total), 4) for n, r in zip(names, right)}


def compose(images: list[Tensor], size: int) -> Tensor:
    """A square number of images (3, h, w), uint8, as one grid: float (3, size, size) in 0..1."""
    n = round(len(images) ** 0.5)
    side = size // n
    tiles = torch.stack([F.interpolate(i[None], (side, side), mode="bilinear", antialias=True)[0] for i in images])
    rows = tiles.view(n, n, 3, side, side).permute(2, 0, 3, 1, 4).reshape(3, n * side, n * side)
    return F.pad(rows, (0, size - n * side, 0, size - n * side)).float() / 255


def grid_boxes(n: int) -> Tensor:
    """Boxes (n * n, 4) of a regular grid, row by row."""
    centre = (torch.arange(n) + 0.5) / n
    cy, cx = torch.meshgrid(centre, centre, indexing="ij")
    side = torch.full((n * n,), 1 / n)
    return torch.stack([cx.flatten(), cy.flatten(), side, side], dim=1)
