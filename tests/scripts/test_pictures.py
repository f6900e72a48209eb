"""Which pictures stand in README and which in the report, and what is drawn of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from engine.evaluation.draw import colour_of
from engine.evaluation.prediction import Box, Prediction
from engine.storage.errors import UserError
from scripts.report import pictures
from scripts.report.pictures import PHOTOGRAPHS, SHOWN, SIDE, Photograph, errors, opened, ranked, side_by_side

CUP = Photograph("coffee.png", {"cup": 1, "dining table": 1}, frozenset({"table"}))


def said(boxes: list[str], table: int = 0, cat: int = 0) -> Prediction:
    """Boxes by name, and so many of a hundred pixels in two regions."""
    mask = np.array([1] * table + [2] * cat + [0] * (100 - table - cat), np.uint8).reshape(10, 10)
    found = [Box(name, 0.9, (1, 1, 5, 5)) for name in boxes]
    return Prediction({"church": 0.8}, found, mask, ("cup", "dining table", "cat"), ("background", "table", "cat"))


def test_errors_are_what_is_missed_and_what_is_not_there() -> None:
    assert errors(CUP, said(["cup", "dining table"], table=50)) == 0
    assert errors(CUP, said(["cup", "cup", "dining table"], table=50)) == 1  # found twice
    assert errors(CUP, said(["cat"], table=50)) == 3
    assert errors(CUP, said(["cup", "dining table"], table=1, cat=2)) == 2
    assert errors(CUP, said(["cup", "dining table"], table=2, cat=1)) == 0  # too small to count


def test_regions_are_named_in_their_colour_below_each_picture() -> None:
    whole = side_by_side([(Image.new("RGB", (10, 10), "grey"), said(["cup"], table=50))] * 2)
    assert whole.size == (2 * SIDE + pictures.GAP, SIDE + 2 * pictures.LINE)
    for left in (0, SIDE + pictures.GAP):
        assert whole.getpixel((left + 5, SIDE + 10)) == colour_of(1)
    assert whole.getpixel((SIDE + 5, 300)) == (255, 255, 255)


def test_without_scikit_image_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        opened(PHOTOGRAPHS[0])


class Blind:
    """Finds nothing in any picture but a person's box in dark ones."""

    threshold, input_size, mean = 0.5, 32, torch.zeros(1)
    classes = {"det": ("person",), "seg": ("background", "person"), "cls": ("church",)}  # noqa: RUF012

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        masks = torch.zeros(1, 2, 4, 4)
        masks[:, 0] = 1.0
        sure = 5.0 if images.mean() < 0.4 else -5.0
        boxes = torch.full((1, 1, 4), 0.5)
        return {"pred_logits": torch.full((1, 1, 1), sure), "pred_boxes": boxes, "pred_masks": masks} | {
            "pred_class": torch.zeros(1, 1),
        }


def test_pictures_with_fewer_errors_come_first() -> None:
    pytest.importorskip("skimage", reason="needs scikit-image")
    found = ranked(Blind())  # type: ignore[arg-type]
    assert len(found) == len(PHOTOGRAPHS) > SHOWN
    assert all(max(picture.size) == SIDE for picture, _ in found)
    counted = [errors(photograph, p) for _, p in found for photograph in PHOTOGRAPHS if _ == opened(photograph)]
    assert counted == sorted(counted)
    assert len(counted) == len(PHOTOGRAPHS)
    assert len(set(counted)) > 1
