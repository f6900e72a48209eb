"""Predictions drawn into pictures of any size, with names of any script."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from engine.evaluation.draw import LEGEND, MOST, box_colours, colour_of, draw, tinted
from engine.evaluation.lettering import lettering
from engine.evaluation.metrics import predicted_mask
from engine.evaluation.prediction import Box
from tests.engine.test_predict import found, photo


def test_what_was_found_is_drawn_and_the_picture_left_alone() -> None:
    image = Image.new("RGB", (480, 240), (100, 100, 100))
    mask = np.zeros((240, 480), np.uint8)
    mask[:, 240:] = 2
    picture = draw(image, found(mask, [Box("dog", 0.8, (40.0, 60.0, 140.0, 160.0))]))
    assert picture.size == (480 + LEGEND, 240)
    assert picture.getpixel((40, 120)) == colour_of(2)  # the box's left edge
    assert picture.getpixel((100, 120)) == (100, 100, 100)  # inside: background
    tint = picture.getpixel((400, 120))
    assert tint == pytest.approx([0.55 * 100 + 0.45 * c for c in colour_of(2)], abs=1)
    legend = np.asarray(picture)[:, 480:]
    assert (legend == colour_of(2)).all(-1).any()
    assert image.getpixel((400, 120)) == (100, 100, 100)


def test_a_box_has_the_colour_of_the_regions_of_its_name_or_one_that_no_region_has() -> None:
    regions = ("background", "cat", "diningtable")
    colours = box_colours(("dining table", "cup", "cat"), regions)
    assert (colours["dining table"], colours["cat"]) == (colour_of(2), colour_of(1))
    assert colours["cup"] not in {colour_of(i) for i in range(len(regions))}
    assert len(set(box_colours(("cup", "book"), ()).values()) - {colour_of(0)}) == 2


def test_small_pictures_are_enlarged_and_boxes_at_the_edge_keep_their_names() -> None:
    image = Image.new("RGB", (48, 96), "white")
    picture = draw(image, found(np.zeros((96, 48), np.uint8), [Box("cat", 0.5, (0.0, 0.0, 48.0, 96.0))]))
    assert picture.size == (240 + LEGEND, 480)


def test_large_pictures_are_drawn_smaller_with_everything_in_its_place() -> None:
    image = Image.new("RGB", (MOST + 1, 99), (100, 100, 100))
    mask = np.zeros((99, MOST + 1), np.uint8)
    mask[:, 4000:] = 2
    picture = draw(image, found(mask, [Box("cat", 0.5, (1000.0, 10.0, 3000.0, 90.0))]))
    assert picture.width == 2401 + LEGEND
    assert picture.getpixel((500, 30)) == colour_of(1)  # the box's left edge
    assert picture.getpixel((1990, 30)) == (100, 100, 100)
    assert picture.getpixel((2010, 30)) == pytest.approx([0.55 * 100 + 0.45 * c for c in colour_of(2)], abs=1)


@pytest.mark.parametrize("size", [(96, 130), (700, 900)])
def test_strips_make_the_same_mask_and_the_same_drawing(size: tuple[int, int]) -> None:
    logits = torch.randn(7, 12, 10, generator=torch.Generator().manual_seed(0))
    whole = predicted_mask(logits, size)
    parts = predicted_mask(logits, size, at_once=7 * 130 * 11)
    best = F.interpolate(logits[None], size, mode="bilinear")[0].topk(2, dim=0).values
    assert parts.dtype == whole.dtype == torch.int16
    assert ((parts == whole) | (best[0] - best[1] < 1e-5)).all()
    mask, image = whole.numpy(), photo(size[1], size[0])
    drawn = np.asarray(draw(image, replace(found(mask), seg_classes=tuple("abcdefg"))))
    if max(size) > 480:
        assert np.array_equal(drawn[: size[0], : size[1]], tinted(np.asarray(image), mask))


@pytest.mark.parametrize(
    ("one", "other"), [("кошка", "собак"), ("γάτα", "αργά"), ("猫", "犬"), ("é", "è"), ("\ue123", "\ue124")]
)
def test_names_of_any_script_differ_in_a_picture(one: str, other: str) -> None:
    mask = np.ones((80, 120), np.uint8)
    pictures = []
    for name in (one, other):
        seen = replace(found(mask, [Box(name, 0.5, (10, 30, 60, 60))]), det_classes=(name,), chances={})
        pictures.append(np.asarray(draw(photo(), replace(seen, seg_classes=("background", name)))))
    assert (pictures[0][:, -LEGEND:] != pictures[1][:, -LEGEND:]).any(), "the legend"
    assert (pictures[0][:, :-LEGEND] != pictures[1][:, :-LEGEND]).any(), "the box"


def test_characters_that_no_font_has_are_written_as_numbers() -> None:
    letters = lettering(["ж", "\ue123"])
    assert letters.legible("aж\ue123") == "aжU+E123"
    assert lettering(["plain"]).legible("猫") == "U+732B"
