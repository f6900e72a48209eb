"""Holding the pretrained backbone's feature maps, in every stage."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from continual import Stage, Step
from continual.hold import Hold
from models.onehead import OneHead
from models.pretrained_backbone import PretrainedBackbone
from tests.models.builders import images, random_targets, tiny


@pytest.fixture
def network() -> OneHead:
    return tiny()


@pytest.fixture
def pretrained(network: OneHead) -> PretrainedBackbone:
    return PretrainedBackbone(copy.deepcopy(network.backbone))


def term(
    weight: float, student: OneHead, pretrained: PretrainedBackbone | None, old: tuple[str, ...] = ()
) -> dict[str, Tensor]:
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


def test_it_is_zero_at_the_start_and_grows_with_distance_and_weight(
    network: OneHead, pretrained: PretrainedBackbone
) -> None:
    same = term(1.0, network, pretrained)["hold"]
    one, two = (term(weight, shaken(network), pretrained)["hold"] for weight in (1.0, 2.0))
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert one.item() > 1e-4
    assert two.item() == pytest.approx(2 * one.item(), rel=1e-4)


def test_its_gradient_reaches_the_backbone_alone(network: OneHead, pretrained: PretrainedBackbone) -> None:
    student = shaken(network)
    term(1.0, student, pretrained)["hold"].backward()
    assert all(p.grad is None for part in (student.neck, student.head) for p in part.parameters())
    assert all(p.grad is not None for p in student.backbone.parameters())
    assert all(p.grad is None for p in pretrained.parameters())


def test_without_a_pretrained_network_there_is_nothing_to_hold(network: OneHead) -> None:
    assert term(1.0, shaken(network), None) == {}
    assert term(1.0, shaken(network), None, old=("det",)) == {}
