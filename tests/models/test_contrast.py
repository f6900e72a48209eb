"""Boxes that hold one thing alone stand out; flat ones, parts, and background at the edges do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.contrast import EDGE, contrast
from models.public_teacher import PublicTeacher

FLAT = torch.zeros(1, 1, 16, 16)


def square() -> Tensor:
    """A map of 16 x 16 cells that is 3 in the middle 8 x 8 and 0 elsewhere, (1, 2, 16, 16)."""
    values = torch.zeros(1, 2, 16, 16)
    values[..., 4:12, 4:12] = 3.0
    return values


def scores(boxes: list[list[float]], maps: Tensor, evidence: Tensor = FLAT) -> list[float]:
    return contrast([maps], evidence, torch.tensor([boxes]))[0].tolist()


def test_the_whole_object_scores_above_parts_and_above_boxes_with_background() -> None:
    whole, *others = scores(
        [[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.3, 0.3], [0.5, 0.5, 0.8, 0.8], [0.7, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.5]],
        square(),
    )
    assert all(whole > 1.5 * other for other in others), (whole, others)


def test_a_score_is_the_distance_over_noise_counted_by_area() -> None:
    (found,) = scores([[0.5, 0.5, 0.5, 0.5]], square())
    assert found == pytest.approx(0.5 * 0.25**0.25 * 9 / 0.5, rel=1e-4)  # sigmoid(0) * area^0.25 * 3^2 / (0.5 + 0)


def test_nothing_stands_out_from_a_flat_map() -> None:
    assert scores([[0.5, 0.5, 0.5, 0.5]], FLAT + 2) == [pytest.approx(0.0, abs=1e-9)]


def test_evidence_of_classes_counts() -> None:
    evidence = FLAT.clone()
    evidence[..., :8] = 1.0
    both = square().roll(-4, -1) + square().roll(4, -1)
    left, right = scores([[0.25, 0.5, 0.4, 0.5], [0.75, 0.5, 0.4, 0.5]], both, evidence)
    assert left > 2 * right


def test_touching_two_sides_of_the_image_costs() -> None:
    corner = torch.zeros(1, 2, 16, 16)
    corner[..., :8, :8] = 3.0
    one_side = corner.roll(4, -1)
    two, one = scores([[0.25, 0.25, 0.5, 0.5]], corner)[0], scores([[0.5, 0.25, 0.5, 0.5]], one_side)[0]
    visible = ((0.625**2 - 0.25) / (0.625 * 0.75 - 0.25)) ** 0.5  # of what surrounds it, three sides instead of two
    assert two / one == pytest.approx(EDGE * visible, rel=0.05)


def test_evidence_is_what_the_classifier_says_of_each_cell() -> None:
    torch.manual_seed(0)
    teacher, images = PublicTeacher("mobilenetv3_small_050"), torch.rand(2, 3, 32, 32)
    last, _ = teacher.maps(images)  # one cell an image
    assert torch.allclose(teacher.evidence(last)[:, 0, 0, 0], teacher(images).logits.logsumexp(-1), atol=1e-5)
    assert teacher.evidence(teacher.maps(torch.rand(1, 3, 64, 96))[0]).shape == (1, 1, 2, 3)
