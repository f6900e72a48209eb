"""Holding the pretrained network's feature maps, in every stage."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from continual import Stage, Step
from continual.hold import Hold
from models.onehead import OneHead
from tests.models.builders import images, random_targets, tiny


@pytest.fixture
def pretrained() -> OneHead:
    return tiny().requires_grad_(False)


def term(weight: float, student: OneHead, pretrained: OneHead | None, old: tuple[str, ...] = ()) -> dict[str, Tensor]:
    hold = Hold(weight)
    start = copy.deepcopy(student).requires_grad_(False) if old else None
    hold.before_stage(Stage(("seg",), old, start, lambda: [], student, pretrained=pretrained))
    step = Step(images(2, seed=5), random_targets(["seg", "seg"]))
    hold.before_step(step)
    return hold.penalty(step, student(step.images))


def shaken(model: OneHead) -> OneHead:
    torch.manual_seed(1)
    student = copy.deepcopy(model).requires_grad_(True)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.1 * p.abs().mean() * torch.randn_like(p)
    return student


def test_it_is_zero_at_the_start_and_grows_with_distance_and_weight(pretrained: OneHead) -> None:
    same = term(1.0, copy.deepcopy(pretrained).requires_grad_(True), pretrained)["hold"]
    one, two = (term(weight, shaken(pretrained), pretrained)["hold"] for weight in (1.0, 2.0))
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert one.item() > 1e-4
    assert two.item() == pytest.approx(2 * one.item(), rel=1e-4)


def test_its_gradient_reaches_backbone_and_neck_alone(pretrained: OneHead) -> None:
    student = shaken(pretrained)
    term(1.0, student, pretrained)["hold"].backward()
    assert all(p.grad is None for p in student.head.parameters())
    assert all(p.grad is not None for part in (student.backbone, student.neck) for p in part.parameters())
    assert all(p.grad is None for p in pretrained.parameters())


def test_without_a_pretrained_network_there_is_nothing_to_hold(pretrained: OneHead) -> None:
    assert term(1.0, shaken(pretrained), None) == {}
    assert term(1.0, shaken(pretrained), None, old=("det",)) == {}
