"""Views show what their crops describe, pixel for pixel, and are varied as the settings allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.photos import PackedImages
from data.views import Crops, ViewConfig, random_crops, random_views, read, recoloured


def packed(*images: Tensor) -> PackedImages:
    """Images uint8 (3, h, w) as they lie in memory."""
    pixels = [torch.cat([i, torch.zeros_like(i[:1])]).permute(1, 2, 0).reshape(-1, 4) for i in images]
    sizes = torch.tensor([i.shape[1:] for i in images])
    ends = sizes.prod(1).cumsum(0)
    flat = torch.cat(pixels).contiguous().view(torch.int32).view(-1)
    return PackedImages(flat, sizes, ends - sizes.prod(1), torch.ones(len(images)))


def noise(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


def crops(boxes: list[list[float]], flip: list[bool]) -> Crops:
    return Crops(torch.arange(len(boxes)), torch.tensor(boxes), torch.tensor(flip))


def test_a_crop_of_the_whole_image_at_its_size_is_the_image() -> None:
    images = [noise(8, 8, 0), noise(8, 8, 1)]
    found = read(packed(*images), crops([[0, 0, 8, 8], [0, 0, 8, 8]], [False, True]), 8)
    torch.testing.assert_close(found[0], images[0] / 255)
    torch.testing.assert_close(found[1], images[1].flip(2) / 255)


def test_a_crop_is_resized_as_interpolate_does() -> None:
    image = noise(20, 30, 2)
    found = read(
        packed(noise(5, 7, 3), image),
        Crops(torch.tensor([1]), torch.tensor([[0.0, 0, 20, 30]]), torch.tensor([False])),
        32,
    )
    expected = F.interpolate(image[None] / 255, (32, 32), mode="bilinear")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_crop_shows_its_part() -> None:
    image = noise(12, 12, 4)
    found = read(packed(image), crops([[2, 3, 6, 6]], [False]), 6)
    torch.testing.assert_close(found[0], image[:, 2:8, 3:9] / 255)


def test_crops_lie_within_their_images_and_are_not_too_small() -> None:
    config = ViewConfig(area=0.2, pixels=10)
    sizes = torch.tensor([[100, 60], [12, 9], [40, 400]]).repeat(300, 1)
    found = random_crops(sizes, torch.arange(len(sizes)), config, torch.Generator().manual_seed(0))
    y, x, h, w = found.boxes.unbind(1)
    assert (found.boxes >= 0).all()
    assert (y + h <= sizes[:, 0] + 1e-3).all()
    assert (x + w <= sizes[:, 1] + 1e-3).all()
    area = h * w / sizes.prod(1)
    assert area[0::3].min() >= 0.2 / 1.001
    assert area[0::3].max() > 0.85
    assert area[1::3].min() > 0.7  # 100 of its 108 pixels, less what a stretched crop loses at the border
    assert 0.4 < found.flip.float().mean() < 0.6


def test_views_are_mixed_with_others_and_follow_from_the_generator() -> None:
    white, black = torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)
    images, config = packed(white, black), ViewConfig(color=0.0)
    one, two = (random_views(images, 64, 8, config, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    shades = one.mean((1, 2, 3))
    assert ((shades > 0.02) & (shades < 0.98)).float().mean() > 0.3  # half of the pairs are of both
    assert one.std((1, 2, 3)).max() < 1e-5


def test_images_are_drawn_by_their_weights() -> None:
    base = packed(torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8))
    images = PackedImages(base.pixels, base.sizes, base.starts, torch.tensor([3.0, 1.0]))
    found = random_views(images, 2000, 8, ViewConfig(color=0.0), torch.Generator().manual_seed(0))
    assert found.mean().item() == pytest.approx(0.75, abs=0.03)


def test_colours_change_within_the_settings() -> None:
    views = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3, 2, 1, 1, 1)
    torch.testing.assert_close(recoloured(views, ones), views)
    dark = ones.clone()
    dark[0] = 0.5
    torch.testing.assert_close(recoloured(views, dark), views / 2)
    grey = ones.clone()
    grey[2] = 0.0
    found = recoloured(views, grey)
    torch.testing.assert_close(found[:, 0], found[:, 1])
