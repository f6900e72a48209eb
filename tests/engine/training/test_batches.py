from __future__ import annotations

import pytest
import torch

from data.transforms import Augment
from data.types import Sample
from engine.training.batches import collate, varied
from models.targets import NO_CLASS, VOID, Targets

SIZE = 64
MOVED = Augment(color=0.0, grey=0.0)
"""Zoom, position and flip alone, so that values of pixels stay."""


def known(boxes: torch.Tensor, mask: torch.Tensor, label: int) -> Targets:
    """One image's annotation; no box means that detection is not annotated."""
    labels = torch.full((len(boxes),), 2)
    return Targets([boxes], [labels], torch.tensor([len(boxes) > 0]), mask[None], torch.tensor([label]))


@pytest.mark.parametrize("seed", range(8))
def test_a_box_moves_with_its_object(seed: int) -> None:
    image = torch.zeros(3, SIZE, SIZE)
    image[:, 16:48, 24:56] = 1
    box, void = torch.tensor([[40, 32, 32, 32]]) / SIZE, torch.full((SIZE, SIZE), VOID)
    torch.manual_seed(seed)
    moved, targets = varied(image, known(box, void, NO_CLASS), MOVED)
    assert targets.has_boxes.tolist() == [True]
    assert targets.labels[0].tolist() == [2]
    rows, columns = (torch.where((moved[0] > 0.7).any(1 - axis))[0] for axis in (0, 1))
    cx, cy, w, h = (SIZE * targets.boxes[0][0]).tolist()
    assert [cx - w / 2, cy - h / 2] == pytest.approx([columns.min().item(), rows.min().item()], abs=1.1)
    assert [cx + w / 2, cy + h / 2] == pytest.approx([columns.max().item() + 1, rows.max().item() + 1], abs=1.1)


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_moves_with_its_pixels_and_what_is_beside_the_image_is_void(seed: int) -> None:
    mask = torch.arange(4).view(2, 2).repeat_interleave(SIZE // 2, 0).repeat_interleave(SIZE // 2, 1)
    torch.manual_seed(seed)
    moved, targets = varied((mask / 4).expand(3, -1, -1), known(torch.zeros(0, 4), mask, NO_CLASS), MOVED)
    seen = targets.masks[0] != VOID
    assert ((moved[0] * 4).round().long() == targets.masks[0])[seen].float().mean() > 0.9  # edges are blurred
    assert torch.allclose(moved[0][~seen], torch.tensor(114 / 255))
    assert not targets.has_boxes.any()


def test_variation_follows_the_seed_alone_and_keeps_the_label() -> None:
    image, void = torch.rand(3, SIZE, SIZE), torch.full((SIZE, SIZE), VOID)
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        view, targets = varied(image, known(torch.zeros(0, 4), void, 3), Augment())
        assert targets.classes.tolist() == [3]
        views.append(view)
    assert torch.equal(views[0], views[1])
    assert not torch.allclose(views[0], views[2])


def test_variation_is_as_precise_within_a_step_of_lower_precision() -> None:
    image, void = torch.rand(3, SIZE, SIZE), torch.full((SIZE, SIZE), VOID)
    views = []
    for lower in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            views.append(varied(image, known(torch.zeros(0, 4), void, 3), Augment())[0])
    assert torch.equal(views[0], views[1])


@pytest.mark.parametrize(("mask", "annotated"), [(None, True), (0, True), (VOID, False)])
def test_boxes_of_a_mask_that_says_nothing_are_not_annotated(mask: int | None, annotated: bool) -> None:
    """An empty list of boxes says "no objects", but not where nothing is known."""
    none, value = torch.zeros(0, 4), None if mask is None else torch.full((SIZE, SIZE), mask)
    sample = Sample(torch.zeros(3, SIZE, SIZE), 0, none, torch.zeros(0, dtype=torch.int64), value, None)
    assert collate([sample])[1].has_boxes.tolist() == [annotated]
