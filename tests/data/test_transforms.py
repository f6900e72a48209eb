from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor
from torchvision import tv_tensors

from data.transforms import (
    Augment,
    Axis,
    Picture,
    crop,
    eval_transform,
    fit,
    flip,
    make_boxes,
    pad,
    recolor,
    resize,
    train_transform,
)
from data.types import VOID, Sample

PLAIN = Augment(scale=(1, 1), aspect=1, crop=1, flip=0, color=0, grey=0)
GEOMETRY = Augment(color=0, grey=0)
RED = (255, 0, 0)


def gen(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def picture(height: int, width: int, *rectangles: tuple[int, int, int, int], masked: bool = False) -> Picture:
    """Blue image with red rectangles x1 y1 x2 y2, boxes or a mask (class 1) saying where they are."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[2] = 255
    mask = torch.zeros(height, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in rectangles:
        image[:, y1:y2, x1:x2] = torch.tensor(RED, dtype=torch.uint8)[:, None, None]
        mask[y1:y2, x1:x2] = 1
    shown = tv_tensors.Image(image)
    if masked:
        return Picture(shown, 7, mask=tv_tensors.Mask(mask))
    boxes = make_boxes(torch.tensor(rectangles, dtype=torch.float32), (height, width))
    return Picture(shown, 7, boxes, torch.arange(len(rectangles)))


def red(image: Tensor) -> Tensor:
    return (image[0] > 0.5) & (image[2] < 0.5)


def extent(where: Tensor) -> Tensor:
    rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def corners(sample: Sample) -> Tensor:
    assert sample.boxes is not None
    height, width = sample.image.shape[1:]
    centre, half = sample.boxes[:, :2], sample.boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1) * torch.tensor([width, height, width, height])


def test_eval_squashes_image_boxes_and_mask():
    sample = eval_transform(50)(picture(100, 200, (40, 20, 120, 60)))
    assert sample.image.shape == (3, 50, 50)
    assert sample.image.dtype == torch.float32
    torch.testing.assert_close(sample.boxes, torch.tensor([[0.4, 0.4, 0.4, 0.4]]))
    assert sample.labels is not None
    assert sample.labels.tolist() == [0]
    assert sample.index == 7
    masked = eval_transform(50)(picture(100, 200, (40, 20, 120, 60), masked=True))
    assert masked.mask is not None
    assert masked.mask.dtype == torch.int64
    assert extent(masked.mask == 1).tolist() == [10, 10, 30, 30]
    assert masked.boxes is None
    assert masked.labels is None


def test_eval_keeps_pixel_values_at_the_same_size():
    shown = picture(32, 32, (0, 0, 5, 5))
    assert torch.equal(eval_transform(32)(shown).image, shown.image.as_subclass(Tensor).float() / 255)


def test_samples_are_plain_tensors():
    sample = train_transform("det", 32, Augment())(picture(40, 40, (5, 5, 30, 30)), gen(0))
    assert type(sample.image) is Tensor
    assert type(sample.boxes) is Tensor


@pytest.mark.parametrize("size", [(90, 120), (64, 64), (300, 170)])
def test_boxes_follow_pixels(size: tuple[int, int]):
    height, width = size
    box = (width // 4, height // 3, width // 4 + width // 3, height // 3 + height // 4)
    transform = train_transform("det", 96, GEOMETRY)
    seen = 0
    for seed in range(150):
        sample = transform(picture(height, width, box), gen(seed))
        found = red(sample.image)
        boxes = corners(sample)
        assert sample.labels is not None
        assert len(sample.labels) == len(boxes)
        if len(boxes):
            seen += 1
            assert (extent(found) - boxes[0]).abs().max() <= 1.5
            assert boxes.min() >= 0
            assert boxes.max() <= 96
    assert seen > 120


@pytest.mark.parametrize("size", [(90, 120), (300, 170)])
def test_masks_follow_pixels(size: tuple[int, int]):
    height, width = size
    box = (width // 4, height // 3, width // 4 + width // 3, height // 3 + height // 4)
    transform = train_transform("seg", 96, GEOMETRY)
    padded = 0
    for seed in range(100):
        sample = transform(picture(height, width, box, masked=True), gen(seed))
        assert sample.mask is not None
        assert set(sample.mask.unique().tolist()) <= {0, 1, VOID}
        fill = sample.mask == VOID
        # The fill is grey, everything else in these pictures is not: void is exactly the padding.
        grey = (sample.image - 114 / 255).abs().amax(0) < 0.01
        assert torch.equal(fill, grey)
        padded += int(fill.any())
        inside = red(sample.image)
        if inside.any():
            assert (extent(inside) - extent(sample.mask == 1)).abs().max() <= 1
            assert ((sample.mask == 1) ^ inside).float().mean() < 0.02
    assert 20 < padded < 95


def test_mask_is_not_shifted_by_shrinking():
    """Plain nearest would take pixel 0 of every three; the middle one is right."""
    mask = torch.zeros(3, 9, dtype=torch.uint8)
    mask[1, [1, 4, 7]] = 1
    image = tv_tensors.Image(torch.zeros(3, 3, 9, dtype=torch.uint8))
    small = resize(Picture(image, 0, mask=tv_tensors.Mask(mask)), (1, 3))
    assert small.mask is not None
    assert small.mask.tolist() == [[1, 1, 1]]


def test_flip_is_exact():
    flipped = flip(picture(20, 40, (3, 5, 13, 9)))
    assert flipped.boxes is not None
    assert flipped.boxes.tolist() == [[27, 5, 37, 9]]
    assert extent(red(flipped.image.as_subclass(Tensor) / 255)).tolist() == [27, 5, 37, 9]


def test_crop_drops_boxes_of_which_less_than_a_quarter_is_left():
    shown = picture(100, 100, (0, 0, 40, 10), (20, 50, 60, 60), (60, 80, 90, 90))
    cut = crop(shown, 0, 31, 100, 69)  # 9 of 40 columns of the first box are left, 29 of 40 of the second
    assert cut.boxes is not None
    assert cut.labels is not None
    assert cut.labels.tolist() == [1, 2]
    assert cut.boxes.tolist() == [[0, 50, 29, 60], [29, 80, 59, 90]]
    kept = crop(shown, 0, 30, 100, 70)  # 10 of 40: exactly a quarter
    assert kept.labels is not None
    assert kept.labels.tolist() == [0, 1, 2]


def test_boxes_that_end_up_below_two_pixels_are_dropped():
    shown = picture(100, 100, (10, 10, 29, 60), (50, 50, 70, 70))
    small = fit(shown, (10, 10), Axis(0, 100, 10, 0), Axis(0, 100, 10, 0))
    assert small.labels is not None
    assert small.labels.tolist() == [1]


def test_images_without_boxes_stay_without():
    sample = train_transform("det", 32, Augment())(picture(50, 50), gen(1))
    assert sample.boxes is not None
    assert sample.labels is not None
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == (0,)
    assert sample.labels.dtype == torch.int64


def test_pad_fills_grey_and_void():
    framed = pad(picture(4, 6, (0, 0, 2, 2), masked=True), 1, 2, 3, 0)
    assert framed.image.shape == (3, 6, 10)
    assert framed.image[:, 0, 0].tolist() == [114, 114, 114]
    assert framed.mask is not None
    assert framed.mask[0, 0] == VOID
    assert framed.mask[2, 1] == 1


@pytest.mark.parametrize("where", [0.0, 0.3, 1.0])
def test_axis_covers_the_output(where: float):
    assert Axis.zoomed(100, 50, 0.5, where) == Axis(0, 100, 25, round(25 * where))
    assert Axis.zoomed(100, 50, 2.0, where) == Axis(round(50 * where), 50, 50, 0)
    assert Axis.zoomed(100, 50, 1.0, where) == Axis(0, 100, 50, 0)
    assert Axis.zoomed(1, 50, 3.0, where) == Axis(0, 1, 50, 0)


@pytest.mark.parametrize("task", ["det", "seg", "cls"])
def test_neutral_settings_equal_evaluation(task):
    shown = picture(60, 80, (10, 10, 50, 40), masked=task == "seg")
    varied, plain = train_transform(task, 48, PLAIN)(shown, gen(3)), eval_transform(48)(shown)
    torch.testing.assert_close(varied.image, plain.image, atol=2e-3, rtol=0)
    if task == "seg":
        assert torch.equal(varied.mask, plain.mask)
    else:
        torch.testing.assert_close(varied.boxes, plain.boxes)


def test_classification_crops_and_never_pads():
    shown = Picture(picture(60, 80).image, 0, label=3)
    for seed in range(50):
        sample = train_transform("cls", 48, GEOMETRY)(shown, gen(seed))
        assert sample.label == 3
        assert sample.image.shape == (3, 48, 48)
        assert (sample.image[2] > 0.99).all()


def test_same_generator_same_sample():
    transform, shown = train_transform("det", 48, Augment()), picture(60, 80, (10, 10, 50, 40))
    first, again, other = transform(shown, gen(5)), transform(shown, gen(5)), transform(shown, gen(6))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.image, other.image)


def test_input_picture_is_left_alone():
    shown = picture(60, 80, (10, 10, 50, 40))
    before = shown.image.clone()
    train_transform("det", 48, Augment())(shown, gen(5))
    assert torch.equal(shown.image, before)
    assert shown.boxes is not None
    assert shown.boxes.tolist() == [[10, 10, 50, 40]]


def test_recolor_by_hand():
    grey = torch.full((3, 2, 2), 0.5)
    torch.testing.assert_close(recolor(grey, 1.2, 1, 1, 0), torch.full((3, 2, 2), 0.6), atol=1e-3, rtol=0)
    torch.testing.assert_close(recolor(grey, 1, 0.3, 0.2, 0.1), grey, atol=2e-3, rtol=0)
    steps = torch.tensor([0.4, 0.6]).expand(3, 1, 2)
    halved = recolor(steps, 1, 0.5, 1, 0)
    torch.testing.assert_close(halved, torch.tensor([0.45, 0.55]).expand(3, 1, 2), atol=1e-3, rtol=0)
    vivid = torch.tensor([1.0, 0, 0]).reshape(3, 1, 1)
    torch.testing.assert_close(recolor(vivid, 1, 1, 0, 0), torch.full((3, 1, 1), 0.299), atol=1e-3, rtol=0)
    turned = recolor(torch.tensor([0.6, 0.4, 0.4]).reshape(3, 1, 1), 1, 1, 1, 1 / 3).flatten()
    assert turned.argmax() != 0
    assert abs(float(turned @ torch.tensor([0.299, 0.587, 0.114])) - 0.4598) < 2e-3
