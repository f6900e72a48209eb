"""Recalling what the pretrained network calls any region."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from continual import Stage, Step
from continual.recall import Recall, random_boxes
from models.boxes import to_xyxy
from models.onehead import OneHead
from tests.models.builders import images, random_targets, tiny


@pytest.fixture
def pretrained() -> OneHead:
    return tiny().requires_grad_(False)


def term(weight: float, student: OneHead, pretrained: OneHead | None) -> dict[str, Tensor]:
    torch.manual_seed(2)
    recall = Recall(weight)
    recall.before_stage(Stage(("seg",), (), None, lambda: [], student, pretrained=pretrained))
    step = Step(images(2, seed=5), random_targets(["seg", "seg"]))
    recall.before_step(step)
    return recall.penalty(step, student(step.images))


def shaken(model: OneHead) -> OneHead:
    torch.manual_seed(1)
    student = copy.deepcopy(model).requires_grad_(True)
    with torch.no_grad():
        for p in (*student.backbone.parameters(), *student.neck.parameters()):
            p += 0.1 * p.abs().mean() * torch.randn_like(p)
    return student


def test_it_is_zero_at_the_start_and_grows_with_distance_and_weight(pretrained: OneHead) -> None:
    same = term(1.0, copy.deepcopy(pretrained).requires_grad_(True), pretrained)["recall"]
    one, two = (term(weight, shaken(pretrained), pretrained)["recall"] for weight in (1.0, 2.0))
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert one.item() > 1e-6
    assert two.item() == pytest.approx(2 * one.item(), rel=1e-4)


def test_regions_are_named_by_the_rows_of_the_pretrained_network(pretrained: OneHead) -> None:
    student = shaken(pretrained)
    value = term(1.0, student, pretrained)["recall"]
    value.backward()
    assert all(p.grad is None for p in student.head.parameters())
    assert all(p.grad is not None for part in (student.backbone, student.neck) for p in part.parameters())
    with torch.no_grad():  # the rows of new classes are not what is read
        student.head.projection.weight.zero_()
    assert term(1.0, student, pretrained)["recall"].item() == pytest.approx(value.item(), rel=1e-5)


def test_maps_may_move_where_the_naming_does_not_care(pretrained: OneHead) -> None:
    recall = Recall(1.0)
    recall.before_stage(Stage(("seg",), (), None, lambda: [], pretrained, pretrained=pretrained))
    step = Step(images(2, seed=5), random_targets(["seg", "seg"]))
    recall.before_step(step)
    maps = [3 * m for m in pretrained.features(step.images)]  # what tokens are read from is normalised
    assert recall.penalty(step, {"maps": maps})["recall"].item() == pytest.approx(0, abs=1e-4)


def test_regions_lie_within_the_image() -> None:
    corners = to_xyxy(random_boxes(5, 40, torch.device("cpu")))
    assert corners.min() >= 0
    assert corners.max() <= 1
    assert ((corners[..., 2:] - corners[..., :2]) >= 0.2 - 1e-6).all()


def test_without_a_pretrained_network_there_is_nothing_to_recall(pretrained: OneHead) -> None:
    assert term(1.0, shaken(pretrained), None) == {}
