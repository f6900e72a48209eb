"""Joint transforms of image, boxes and mask: `eval_transform`, `train_transform`.

All images are squashed to S x S. Random numbers come from an explicit generator, so that an augmentation is a
pure function of what that generator was seeded with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.types import VOID, Sample, Task

GREY = 114 / 255
"""Fill beside a zoomed-out image: close to the mean colour of photographs."""
MIN_VISIBLE = 0.25
"""A box that keeps less than this share of its area is dropped."""
MIN_SIDE = 2.0
"""A box with a side below this many output pixels is dropped."""


@dataclass(frozen=True)
class Augment:
    """How strongly training images are varied; each field alone can be set to its neutral value."""

    scale: tuple[float, float] = (0.5, 1.5)
    """Seg, det: zoom of the image, drawn log-uniformly; (1, 1) is off."""
    aspect: float = 1.2
    """Widths over heights change by a factor of up to this, either way; 1 is off."""
    crop: float = 0.4
    """Cls: a crop keeps at least this share of the image's area; 1 is off."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 is off."""
    color: float = 0.4
    """Brightness, contrast, saturation change by up to this share, hue by an 1/8 of it."""
    grey: float = 0.05
    """Probability of a greyscale image."""
    mosaic: float = 0.0
    """Seg, det: probability that four images are composed into one; 0 is off."""
    paste: float = 0.0
    """Seg: probability that the objects of another image are pasted in; 0 is off."""


@dataclass(frozen=True)
class Picture:
    """A decoded image with its annotation in pixels, before or between transforms.

    image: (3, h, w), uint8 or float in 0..1; boxes: XYXY float32 (n, 4), labels: int64 (n,), None unless
    detection or given by the mask; mask: uint8 (h, w), None unless segmentation; label: None unless classification.
    """

    image: tv_tensors.Image
    index: int
    boxes: tv_tensors.BoundingBoxes | None = None
    labels: Tensor | None = None
    mask: tv_tensors.Mask | None = None
    label: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])


def make_boxes(xyxy: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Wrap boxes x1 y1 x2 y2 (n, 4) in pixels of an image of `size` (height, width)."""
    return tv_tensors.BoundingBoxes(xyxy.reshape(-1, 4).float(), format="XYXY", canvas_size=size)


def resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """Squash image, boxes and mask to `size` (height, width)."""
    if picture.size == size:
        return picture
    mask = picture.mask
    if mask is not None:
        # v2's own mask kernel uses "nearest", which shifts by up to half a pixel; "nearest-exact" does not.
        exact = F.resize_image(mask.as_subclass(Tensor)[None], list(size), v2.InterpolationMode.NEAREST_EXACT)
        mask = tv_tensors.Mask(exact[0])
    return replace(
        picture,
        image=F.resize(picture.image, list(size), antialias=True),
        boxes=None if picture.boxes is None else F.resize(picture.boxes, list(size)),
        mask=mask,
    )


def crop(picture: Picture, top: int, left: int, height: int, width: int) -> Picture:
    """Cut a window out; boxes of which too little is left go, with their labels."""
    if (top, left, height, width) == (0, 0, *picture.size):
        return picture
    window = (top, left, height, width)
    cut = replace(
        picture,
        image=F.crop(picture.image, *window),
        boxes=None if picture.boxes is None else F.clamp_bounding_boxes(F.crop(picture.boxes, *window)),
        mask=None if picture.mask is None else F.crop(picture.mask, *window),
    )
    if picture.boxes is None or cut.boxes is None:
        return cut
    return keep(cut, areas(cut.boxes) >= MIN_VISIBLE * areas(picture.boxes))


def pad(picture: Picture, left: int, top: int, right: int, bottom: int) -> Picture:
    """Put grey around the image and void around the mask, in pixels."""
    margins = [left, top, right, bottom]
    if not any(margins):
        return picture
    grey = GREY if picture.image.is_floating_point() else round(GREY * 255)
    return replace(
        picture,
        image=F.pad(picture.image, margins, fill=grey),
        boxes=None if picture.boxes is None else F.pad(picture.boxes, margins),
        mask=None if picture.mask is None else F.pad(picture.mask, margins, fill=VOID),
    )


def flip(picture: Picture) -> Picture:
    """Mirror left and right."""
    return replace(
        picture,
        image=F.horizontal_flip(picture.image),
        boxes=None if picture.boxes is None else F.horizontal_flip(picture.boxes),
        mask=None if picture.mask is None else F.horizontal_flip(picture.mask),
    )


def areas(boxes: Tensor) -> Tensor:
    """Areas of XYXY boxes (n, 4), in square pixels (n,)."""
    plain = boxes.as_subclass(Tensor)
    return (plain[:, 2:] - plain[:, :2]).clamp(min=0).prod(1)


def keep(picture: Picture, chosen: Tensor) -> Picture:
    """Keep the boxes, and their labels, where the bool tensor `chosen` (n,) is true."""
    if picture.boxes is None or picture.labels is None:
        return picture
    boxes = make_boxes(picture.boxes.as_subclass(Tensor)[chosen], picture.size)
    return replace(picture, boxes=boxes, labels=picture.labels[chosen])


@dataclass(frozen=True)
class Axis:
    """How one side of the image lands on one side of the output, in whole pixels.

    Source pixels `start` .. `start + extent` become `drawn` output pixels, after `before` pixels of fill.
    """

    start: int
    extent: int
    drawn: int
    before: int

    @classmethod
    def zoomed(cls, length: int, out: int, zoom: float, where: float) -> Axis:
        """Plan `length` pixels shown `zoom` times as large as `out`; `where` in 0..1 is the position."""
        if zoom < 1:
            drawn = max(1, round(out * zoom))
            return cls(0, length, drawn, round(where * (out - drawn)))
        extent = max(1, round(length / zoom))
        return cls(round(where * (length - extent)), extent, out, 0)


def fit(picture: Picture, size: tuple[int, int], rows: Axis, columns: Axis) -> Picture:
    """Crop, resize and pad to `size` (height, width) as planned; boxes that end up too small go."""
    picture = crop(picture, rows.start, columns.start, rows.extent, columns.extent)
    picture = resize(picture, (rows.drawn, columns.drawn))
    right, bottom = size[1] - columns.before - columns.drawn, size[0] - rows.before - rows.drawn
    picture = pad(picture, columns.before, rows.before, right, bottom)
    if picture.boxes is None:
        return picture
    plain = picture.boxes.as_subclass(Tensor)
    return keep(picture, (plain[:, 2:] - plain[:, :2] >= MIN_SIDE).all(1))


def to_sample(picture: Picture) -> Sample:
    """Turn pixels into what the network takes: float image, fractional cx cy w h boxes, int64 mask."""
    image = F.to_dtype(picture.image, torch.float32, scale=True).as_subclass(Tensor).contiguous()
    boxes = None
    if picture.boxes is not None:
        height, width = picture.size
        plain = picture.boxes.as_subclass(Tensor) / torch.tensor([width, height, width, height])
        boxes = torch.cat([(plain[:, :2] + plain[:, 2:]) / 2, plain[:, 2:] - plain[:, :2]], 1)
    mask = None if picture.mask is None else picture.mask.as_subclass(Tensor).long()
    return Sample(image, picture.index, boxes, picture.labels, mask, picture.label)


def to_picture(sample: Sample) -> Picture:
    """Undo `to_sample`, but for the image's dtype."""
    picture = Picture(tv_tensors.Image(sample.image), sample.index, labels=sample.labels, label=sample.label)
    if sample.boxes is not None:
        height, width = picture.size
        centre, half = sample.boxes[:, :2], sample.boxes[:, 2:] / 2
        corners = torch.cat([centre - half, centre + half], 1) * torch.tensor([width, height, width, height])
        picture = replace(picture, boxes=make_boxes(corners, picture.size))
    if sample.mask is not None:
        picture = replace(picture, mask=tv_tensors.Mask(sample.mask.to(torch.uint8)))
    return picture


LUMA = torch.tensor([0.299, 0.587, 0.114])
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = torch.linalg.inv(_YIQ)


def recolor(image: Tensor, brightness: float, contrast: float, saturation: float, turns: float) -> Tensor:
    """Change a float image (3, h, w) in 0..1 by factors (1 is neutral) and turn its hue (0 is neutral).

    One affine map of colours, hue turned in YIQ space: 25 times faster than the four v2 operations.
    """
    grey = LUMA.expand(3, 3)
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = _RGB @ torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    matrix = brightness * contrast * turn @ (saturation * torch.eye(3) + (1 - saturation) * grey)
    flat = image.flatten(1)
    offset = brightness * (1 - contrast) * (LUMA @ flat.mean(1))
    mixed: Tensor = matrix @ flat + offset
    return mixed.clamp_(0, 1).view_as(image)


@dataclass(frozen=True)
class TrainTransform:
    """Random zoom, aspect, position, flip and colours, to `size` x `size`."""

    task: Task
    size: int
    augment: Augment

    def __call__(self, picture: Picture, generator: Generator) -> Sample:
        """Return the sample that the generator's next ten numbers decide."""
        cfg = self.augment
        u = torch.rand(10, generator=generator).tolist()
        low, high = (1.0, cfg.crop**-0.5) if self.task == "cls" else cfg.scale
        zoom = low * (high / low) ** u[0]
        stretch = cfg.aspect ** (u[1] - 0.5)
        across, down = zoom * stretch, zoom / stretch
        if self.task == "cls":  # a crop, never any padding
            across, down = max(across, 1.0), max(down, 1.0)
        height, width = picture.size
        rows = Axis.zoomed(height, self.size, down, u[2])
        columns = Axis.zoomed(width, self.size, across, u[3])
        picture = fit(picture, (self.size, self.size), rows, columns)
        if u[4] < cfg.flip:
            picture = flip(picture)
        sample = to_sample(picture)
        brightness, contrast, saturation = (1 + cfg.color * (2 * v - 1) for v in u[5:8])
        if u[8] < cfg.grey:
            saturation = 0.0
        turns = cfg.color / 8 * (2 * u[9] - 1)
        with torch.autocast("cpu", enabled=False):  # replay augments within a step, whose precision is the network's
            image = recolor(sample.image, brightness, contrast, saturation, turns)
        return replace(sample, image=image)


def _squash(picture: Picture, size: int) -> Sample:
    return to_sample(resize(picture, (size, size)))


def eval_transform(size: int) -> Callable[[Picture], Sample]:
    """Return the transform of evaluation: squash to `size` x `size`, float 0..1, nothing else."""
    return partial(_squash, size=size)


def train_transform(task: Task, size: int, augment: Augment) -> TrainTransform:
    """Return the transform of training for one task."""
    return TrainTransform(task, size, augment)
