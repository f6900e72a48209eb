"""One training sample made of several: `mosaic` of four, `paste` of one's objects into another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torchvision import tv_tensors

from data.transforms import Axis, Picture, fit, make_boxes, to_picture, to_sample
from data.types import VOID, Sample


def mosaic(samples: Sequence[Sample], generator: Generator) -> Sample:
    """Compose four samples of one size, two by two around a random centre, into one of that size.

    Each is shrunk without changing its aspect and cropped to its quarter. Boxes (or a mask) are there only if
    all four samples have them; the label is None, the index the first one's. Raises `ValueError` for another
    number of samples and for mixed sizes. Bochkovskiy et al., arXiv 2004.10934.
    """
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    if len(samples) != 4 or len(sizes) != 1:
        raise ValueError(f"mosaic takes four samples of one size, got {len(samples)}, sizes {sorted(sizes)}.")
    (height, width), *_ = sizes
    u = torch.rand(10, generator=generator).tolist()
    middle_y, middle_x = round(height * (0.35 + 0.3 * u[0])), round(width * (0.35 + 0.3 * u[1]))
    quarters: list[Picture] = []
    shifts: list[Tensor] = []
    for i, sample in enumerate(samples):
        top, high = ((0, middle_y), (middle_y, height - middle_y))[i // 2]
        left, wide = ((0, middle_x), (middle_x, width - middle_x))[i % 2]
        shrink = max(high / height, wide / width)
        rows = Axis.zoomed(height, high, shrink * height / high, u[2 + 2 * i])
        columns = Axis.zoomed(width, wide, shrink * width / wide, u[3 + 2 * i])
        quarters.append(fit(to_picture(sample), (high, wide), rows, columns))
        shifts.append(torch.tensor([left, top, left, top]))
    whole = Picture(tv_tensors.Image(_grid([q.image for q in quarters])), samples[0].index)
    boxes = [q.boxes + shift for q, shift in zip(quarters, shifts) if q.boxes is not None]
    labels = [q.labels for q in quarters if q.labels is not None]
    masks = [q.mask for q in quarters if q.mask is not None]
    if len(boxes) == 4:
        whole = replace(whole, boxes=make_boxes(torch.cat(boxes), (height, width)), labels=torch.cat(labels))
    if len(masks) == 4:
        whole = replace(whole, mask=tv_tensors.Mask(_grid(masks)))
    return to_sample(whole)


def paste(sample: Sample, other: Sample) -> Sample:
    """Put the objects of another sample of the same size into this one, pixels and mask.

    Boxes go, if there are any: the pasted objects have none and hide others. Source: simple copy-paste, arXiv
    2012.07177, with all regions of the other image at once.
    """
    assert sample.mask is not None
    assert other.mask is not None
    objects = (other.mask != 0) & (other.mask != VOID)
    image = torch.where(objects, other.image, sample.image)
    mask = torch.where(objects, other.mask, sample.mask)
    return replace(sample, image=image, boxes=None, labels=None, mask=mask)


def _grid(parts: Sequence[Tensor]) -> Tensor:
    """Join four tensors (..., h, w) two by two."""
    return torch.cat([torch.cat(list(parts[:2]), -1), torch.cat(list(parts[2:]), -1)], -2)
