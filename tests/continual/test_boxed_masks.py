"""A teacher's masks as boxes correct them, and what a student learns from that."""

from __future__ import annotations

import copy

import pytest
import torch

from continual.base import Stage, Step
from continual.boxed_masks import INSIDE, OUTSIDE, within_boxes
from continual.distill import Distill
from models.onehead import OneHead
from models.targets import NO_CLASS, VOID, Targets
from tests.models.builders import images, object_targets, random_targets, tiny

MASK_CLASS = torch.tensor([2, 3, 1])
"""Boxes of dogs, cups, tables; masks of background, tables, dogs. No mask is a cup."""


def test_a_class_is_raised_inside_its_boxes_and_lowered_outside() -> None:
    dog, cup = torch.tensor([[0.5, 0.5, 0.4, 0.5]]), torch.tensor([[0.1, 0.1, 0.2, 0.2]])
    targets = object_targets(
        [torch.cat([dog, cup]), torch.zeros(0, 4)], [torch.tensor([0, 1]), torch.tensor([]).long()]
    )
    before = torch.randn(2, 3, 4, 4)
    shift = within_boxes(before, targets, MASK_CLASS) - before
    inside = torch.full((4, 4), OUTSIDE)
    inside[1:3, 1:3] = INSIDE
    inside[:, 0] = inside[:, 3] = OUTSIDE  # the box ends within the middle columns: 0.3 to 0.7
    torch.testing.assert_close(shift[0, 2], inside)
    torch.testing.assert_close(shift[0, 1], torch.full((4, 4), OUTSIDE))  # no table is there
    torch.testing.assert_close(shift[:, 0], torch.zeros(2, 4, 4))  # background has no boxes
    torch.testing.assert_close(shift[1, 1:], torch.full((2, 4, 4), OUTSIDE))  # an image without objects


def test_images_without_boxes_or_with_a_mask_of_their_own_stay_as_they_are() -> None:
    targets = random_targets(["seg", "cls", "all", None])
    logits = torch.randn(4, 5, 12, 12).half()
    same = within_boxes(logits, targets, torch.tensor([1, 2, 3]))
    assert torch.equal(same, logits.float())


@pytest.fixture(scope="module")
def start() -> OneHead:
    return tiny().requires_grad_(False)


def masks_term(start: OneHead, boxes: bool, mask_class: list[int], stage: str = "det") -> float:
    """The term "distill_seg" of a student that equals its teacher, for two images with a box of a dog each."""
    student = copy.deepcopy(start)
    distill = Distill(1.0, 0.0, boxes)
    distill.before_stage(Stage((stage,), ("seg",), start, lambda: [], student, mask_class=torch.tensor(mask_class)))
    box, dog = torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1])
    blank = torch.full((2, 96, 96), VOID)
    step = Step(images(2), Targets([box] * 2, [dog] * 2, torch.tensor([True] * 2), blank, torch.tensor([NO_CLASS] * 2)))
    distill.before_step(step)
    return float(distill.penalty(step, student(step.images, step.queries))["distill_seg"])


@torch.no_grad()
def test_a_student_that_equals_its_teacher_still_learns_from_boxes(start: OneHead) -> None:
    assert masks_term(start, boxes=False, mask_class=[1, 2, 3]) == pytest.approx(0, abs=1e-5)
    assert masks_term(start, boxes=True, mask_class=[1, 2, 3]) > 0.01
    assert masks_term(start, boxes=True, mask_class=[1, 2, 3], stage="cls") == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def test_boxes_of_classes_that_no_mask_names_change_nothing(start: OneHead) -> None:
    assert masks_term(start, boxes=True, mask_class=[5, 5, 5]) == pytest.approx(0, abs=1e-5)
