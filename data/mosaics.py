"""Mosaics: pictures composed of many labelled images, with free annotation for every output of the network.

Each tile is an object with a box, a region of the mask and, where one tile fills most of the canvas, the image's label.
So one picture of 320 px teaches a dozen images of 64 px at the scale at which objects will be looked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from data.class_images import ClassImages
from data.transforms import LUMA, recolor
from data.types import Sample

COUNTS = (((1, 1), 0.08), ((2, 4), 0.22), ((5, 9), 0.4), ((10, 20), 0.3))
"""How many tiles a canvas has: ranges and how often each is drawn."""
MEAN_TILES = sum(p * (low + high) / 2 for (low, high), p in COUNTS)


@dataclass(frozen=True)
class MosaicConfig:
    """How tiles are varied and laid out."""

    crop: float = 0.45
    """A tile shows at least this share of its image's area."""
    aspect: float = 1.33
    """Widths over heights change by a factor of up to this, either way."""
    color: float = 0.3
    """Brightness, contrast and saturation change by up to this share, hue by an 1/8 of it."""
    gap: float = 0.5
    """Probability that a tile leaves a part of its cell to the background."""
    round: float = 0.3
    """Probability that a tile has a rounded outline instead of a rectangle's."""


@dataclass(frozen=True)
class Mosaic:
    """A composed picture. In `sample`, labels are class indices; the mask holds positions in `slots`.

    slots: int64 (K,), segmentation classes the mask speaks of: 0 (background), the classes of all tiles as label + 1,
    then others that do not occur.
    """

    sample: Sample
    slots: Tensor


class MosaicDataset(Dataset[Mosaic]):
    """Endless mosaics; number i of an epoch is a pure function of (seed, epoch, i).

    An image is drawn in proportion to its side, and large images tend to get large tiles: those have the detail for it.

    Args:
        images: what tiles are made of.
        size: side S of the canvas in pixels.
        length: mosaics an epoch.
        slots: segmentation classes K a mosaic speaks of, at least one more than tiles can be on it.
    """

    def __init__(
        self, images: ClassImages, size: int, length: int, config: MosaicConfig, slots: int = 28, seed: int = 0
    ) -> None:
        self.images, self.size, self.length, self.config = images, size, length, config
        self.slots, self.seed = slots, seed
        sides = torch.tensor([math.sqrt(i.shape[-1] * i.shape[-2]) for i in images.images])
        self.sides = sides.tolist()
        self.cumulative = sides.cumsum(0).tolist()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose mosaics come next; also seen by running workers."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Mosaic:
        """Compose mosaic `index` of the epoch."""
        rng = Random(f"{self.seed}/{int(self._epoch)}/{index}")
        low, high = rng.choices([c for c, _ in COUNTS], [p for _, p in COUNTS])[0]
        cells = sorted(split(self.size, rng.randint(low, high), rng), key=lambda c: -c[2] * c[3])
        chosen = rng.choices(range(len(self.sides)), cum_weights=self.cumulative, k=len(cells))
        chosen.sort(key=lambda i: -math.log(self.sides[i]) + rng.gauss(0, 0.5))
        canvas = blotches(self.size, rng)
        tiles = [shrunk(cell, rng) if rng.random() < self.config.gap else cell for cell in cells]
        labels = self.images.labels[chosen].tolist()
        slots = self.choose_slots(set(labels), rng)
        mask = torch.zeros(self.size, self.size, dtype=torch.int64)
        for (top, left, height, width), i, label in zip(tiles, chosen, labels):
            where = (..., slice(top, top + height), slice(left, left + width))
            tile, value = self.tile(self.images.images[i], height, width, rng), slots.index(label + 1)
            inside = outline(height, width, rng) if rng.random() < self.config.round else None
            canvas[where] = tile if inside is None else torch.where(inside, tile, canvas[where])
            mask[where] = value if inside is None else torch.where(inside, value, mask[where])
        boxes = torch.tensor([[left + w / 2, top + h / 2, w, h] for top, left, h, w in tiles]) / self.size
        sample = Sample(self.recolored(canvas, rng), index, boxes, torch.tensor(labels), mask)
        area, largest = boxes[:, 2:].prod(1).max(0)
        if area >= 0.5:
            sample = replace(sample, label=labels[int(largest)])
        return Mosaic(sample, torch.tensor(slots))

    def choose_slots(self, present: set[int], rng: Random) -> list[int]:
        """Segmentation classes to ask for: background, the classes that are there, others up to the number of slots."""
        others = rng.sample(range(len(self.images.names)), min(self.slots, len(self.images.names)))
        classes = [*sorted(present), *(c for c in others if c not in present)]
        return [0, *(c + 1 for c in classes[: max(len(present), self.slots - 1)])]

    def tile(self, image: Tensor, height: int, width: int, rng: Random) -> Tensor:
        """A random crop of an image as a tile, uint8 (3, height, width), mirrored or not."""
        cfg = self.config
        full_h, full_w = image.shape[-2:]
        aspect = width / height * cfg.aspect ** rng.uniform(-1, 1)
        area = rng.uniform(cfg.crop, 1) * full_h * full_w
        h = min(full_h, max(1, round(math.sqrt(area / aspect))))
        w = min(full_w, max(1, round(math.sqrt(area * aspect))))
        top, left = rng.randint(0, full_h - h), rng.randint(0, full_w - w)
        part = image[:, top : top + h, left : left + w]
        if rng.random() < 0.5:
            part = part.flip(-1)
        return F.interpolate(part[None], (height, width), mode="bilinear", antialias=True)[0]

    def recolored(self, canvas: Tensor, rng: Random) -> Tensor:
        """The canvas, uint8, as float in 0..1 under another light."""
        color = self.config.color
        brightness, contrast, saturation, hue = (color * rng.uniform(-1, 1) for _ in range(4))
        grey = rng.random() < 0.05
        return recolor(canvas.float() / 255, 1 + brightness, 1 + contrast, 0.0 if grey else 1 + saturation, hue / 8)


Cell = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


def split(size: int, count: int, rng: Random) -> list[Cell]:
    """Cut a square of `size` pixels into `count` rectangles, large ones first, across their longer side."""
    cells: list[Cell] = [(0, 0, size, size)]
    while len(cells) < count:
        i = rng.choices(range(len(cells)), [(c[2] * c[3]) ** 1.5 for c in cells])[0]
        top, left, height, width = cells.pop(i)
        if height * math.exp(rng.gauss(0, 0.2)) > width:
            cut = round(height * rng.uniform(0.35, 0.65))
            cells += [(top, left, cut, width), (top + cut, left, height - cut, width)]
        else:
            cut = round(width * rng.uniform(0.35, 0.65))
            cells += [(top, left, height, cut), (top, left + cut, height, width - cut)]
    return cells


def shrunk(cell: Cell, rng: Random) -> Cell:
    """A rectangle inside a cell, of 0.6 to 1 times its sides."""
    top, left, height, width = cell
    h, w = max(1, round(height * rng.uniform(0.6, 1))), max(1, round(width * rng.uniform(0.6, 1)))
    return top + rng.randint(0, height - h), left + rng.randint(0, width - w), h, w


def outline(height: int, width: int, rng: Random) -> Tensor:
    """Pixels (height, width), bool, inside a rounded shape that touches all four sides: diamond to nearly rectangle."""
    power = rng.uniform(1.2, 4)
    y = torch.linspace(-1, 1, height).abs() ** power
    x = torch.linspace(-1, 1, width).abs() ** power
    return y[:, None] + x <= 1


def blotches(size: int, rng: Random) -> Tensor:
    """A background without objects: soft blotches of colour, uint8 (3, size, size)."""
    coarse = torch.tensor([rng.random() for _ in range(3 * 16)]).view(1, 3, 4, 4)
    grey = (coarse * LUMA.view(1, 3, 1, 1)).sum(1, keepdim=True)
    mixed = 255 * (grey + (coarse - grey) * rng.random())
    return F.interpolate(mixed.to(torch.uint8), (size, size), mode="bilinear", antialias=True)[0]
