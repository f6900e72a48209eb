"""A mosaic is reproducible, covers its canvas, and its annotations say what was drawn where."""

from __future__ import annotations

from random import Random

import pytest
import torch

from data.class_images import ClassImages
from data.mosaics import MEAN_TILES, MosaicConfig, MosaicDataset, blotches, outline, shrunk, split

SIZE = 96
STILL = MosaicConfig(color=0.0, gap=0.5, round=0.0)


def flat_images(count: int = 40) -> ClassImages:
    """One plain image for each class, whose colour is the class: (6 c, 255 - 6 c, 3)."""
    colours = [torch.tensor([6 * c, 255 - 6 * c, 3], dtype=torch.uint8) for c in range(count)]
    images = [c.view(3, 1, 1).expand(3, 16 + 8 * (i % 3), 20).clone() for i, c in enumerate(colours)]
    return ClassImages(tuple(f"class {c}" for c in range(count)), images, torch.arange(count))


def dataset(config: MosaicConfig = STILL, length: int = 30, seed: int = 0) -> MosaicDataset:
    return MosaicDataset(flat_images(), SIZE, length, config, seed=seed)


@pytest.mark.parametrize("count", [1, 2, 7, 25])
def test_cells_cover_the_canvas_once(count: int) -> None:
    cells = split(100, count, Random(count))
    covered = torch.zeros(100, 100, dtype=torch.int64)
    for top, left, height, width in cells:
        covered[top : top + height, left : left + width] += 1
    assert len(cells) == count
    assert (covered == 1).all()


def test_a_shrunk_cell_lies_inside() -> None:
    rng = Random(0)
    for _ in range(100):
        top, left, height, width = shrunk((10, 20, 30, 40), rng)
        assert top >= 10
        assert left >= 20
        assert top + height <= 40
        assert left + width <= 60
        assert height >= 18
        assert width >= 24


def test_boxes_mask_and_colours_agree() -> None:
    data = dataset()
    for i in range(len(data)):
        mosaic = data[i]
        sample, slots = mosaic.sample, mosaic.slots
        assert sample.boxes is not None
        assert sample.labels is not None
        assert sample.mask is not None
        classes = slots[sample.mask]
        for (cx, cy, w, h), label in zip((sample.boxes * SIZE).tolist(), sample.labels.tolist()):
            rows, columns = slice(round(cy - h / 2), round(cy + h / 2)), slice(round(cx - w / 2), round(cx + w / 2))
            assert (classes[rows, columns] == label + 1).all()
            colour = (sample.image[:, rows, columns] * 255).flatten(1)
            expected = torch.tensor([6.0 * label, 255 - 6.0 * label, 3])
            assert torch.allclose(colour, expected[:, None].expand_as(colour), atol=1.5) or saturated(sample.image)
        boxes = (sample.boxes[:, 2:].prod(1)).sum() * SIZE**2
        assert abs(float(boxes) - int((sample.mask > 0).sum())) < 2


def test_a_rounded_tile_touches_the_sides_of_its_box_and_leaves_its_corners() -> None:
    for seed in range(20):
        inside = outline(30, 41, Random(seed))
        assert inside.any(0)[[0, 20, 40]].tolist() == [False, True, False] or inside[15, 0]
        assert inside[15, 20]
        assert inside[0, 20] or inside[1, 20]
        assert inside[15, 0] or inside[15, 1]
        assert not inside[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        assert torch.equal(inside, inside.flip(0))
        assert torch.equal(inside, inside.flip(1))


def test_what_lies_outside_a_rounded_tile_is_background() -> None:
    data = dataset(MosaicConfig(color=0.0, gap=1.0, round=1.0))
    for i in range(len(data)):
        sample = data[i].sample
        assert sample.boxes is not None
        assert sample.mask is not None
        filled = float((sample.mask > 0).sum()) / float(sample.boxes[:, 2:].prod(1).sum() * SIZE**2)
        assert 0.4 < filled < 0.98


def saturated(image: torch.Tensor) -> bool:
    """Whether the canvas was turned to grey."""
    return bool(torch.allclose(image[0], image[1], atol=0.02))


def test_slots_are_distinct_background_first_and_hold_all_that_is_there() -> None:
    data = dataset()
    for i in range(len(data)):
        mosaic = data[i]
        assert mosaic.sample.labels is not None
        assert len(mosaic.slots) == 28
        assert mosaic.slots[0] == 0
        assert len(set(mosaic.slots.tolist())) == 28
        assert set((mosaic.sample.labels + 1).tolist()) <= set(mosaic.slots.tolist())


def test_only_a_tile_over_half_of_the_canvas_names_the_image() -> None:
    data = dataset(length=200)
    named = 0
    for i in range(len(data)):
        sample = data[i].sample
        assert sample.boxes is not None
        assert sample.labels is not None
        area, largest = sample.boxes[:, 2:].prod(1).max(0)
        assert (sample.label is not None) == bool(area >= 0.5)
        if sample.label is not None:
            assert sample.label == int(sample.labels[largest])
            named += 1
    assert 15 < named < 80


def test_a_mosaic_depends_on_seed_epoch_and_index_alone() -> None:
    first, second, other = dataset(MosaicConfig()), dataset(MosaicConfig()), dataset(MosaicConfig(), seed=1)
    for data in (first, second, other):
        data.set_epoch(3)
    _ = second[0]
    assert torch.equal(first[5].sample.image, second[5].sample.image)
    assert not torch.equal(first[5].sample.image, other[5].sample.image)
    second.set_epoch(4)
    assert not torch.equal(first[5].sample.image, second[5].sample.image)


def test_large_images_are_drawn_more_often_and_get_the_large_tiles() -> None:
    small, large = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(3, 96, 96, dtype=torch.uint8)
    images = ClassImages(("small", "large"), [small, large], torch.tensor([0, 1]))
    data = MosaicDataset(images, SIZE, 200, STILL, slots=3)
    areas: list[list[float]] = [[], []]
    for i in range(200):
        sample = data[i].sample
        assert sample.boxes is not None
        assert sample.labels is not None
        for box, label in zip(sample.boxes, sample.labels.tolist()):
            areas[label].append(float(box[2:].prod()))
    assert 2.5 < len(areas[1]) / len(areas[0]) < 3.5
    assert sum(areas[1]) / len(areas[1]) > 1.3 * sum(areas[0]) / len(areas[0])
    assert abs(sum(map(len, areas)) / 200 - MEAN_TILES) < 1.5


def test_the_background_is_soft() -> None:
    image = blotches(64, Random(0)).int()
    assert image.shape == (3, 64, 64)
    assert (image[:, :, 1:] - image[:, :, :-1]).abs().max() < 32
