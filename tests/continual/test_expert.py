from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from continual.base import Stage, Step
from continual.expert import Expert
from models.onehead import OneHead
from tests.models.builders import images, random_targets, tiny

TASKS = ("seg", "det", "cls")


@pytest.fixture(scope="module")
def expert() -> OneHead:
    return tiny().requires_grad_(False)


def student_of(expert: OneHead, noise: float = 0.0) -> OneHead:
    """The expert's copy, its weights shaken."""
    torch.manual_seed(1)
    student = copy.deepcopy(expert).requires_grad_(True)
    with torch.no_grad():
        for p in student.parameters():
            p += noise * p.abs().mean() * torch.randn_like(p)
    return student


def penalty(student: OneHead, stage: Stage, weight: float = 1.0) -> dict[str, Tensor]:
    remedy = Expert(weight)
    remedy.before_stage(stage)
    step = Step(images(2, seed=5), random_targets(["cls", "cls"]))
    remedy.before_step(step)
    return remedy.penalty(step, student(step.images))


def in_stage(expert: OneHead | None, *tasks: str) -> Stage:
    return Stage(tasks, (), None, lambda: [], expert=lambda _: expert)


def test_without_an_expert_nothing_is_added(expert: OneHead) -> None:
    assert penalty(student_of(expert), in_stage(None, "seg")) == {}


@pytest.mark.parametrize("task", TASKS)
def test_the_distance_grows_with_difference_and_weight(expert: OneHead, task: str) -> None:
    same, near, far = (penalty(student_of(expert, n), in_stage(expert, task))[f"expert_{task}"] for n in (0, 0.1, 0.4))
    assert 0 <= same.item() < near.item() < far.item()
    doubled = penalty(student_of(expert, 0.1), in_stage(expert, task), weight=2.0)[f"expert_{task}"]
    assert doubled.item() == pytest.approx(2 * near.item(), rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_only_the_stage_s_own_task_is_taught(expert: OneHead, task: str) -> None:
    student = student_of(expert, noise=0.2)
    losses = penalty(student, in_stage(expert, task))
    assert losses.keys() == {f"expert_{task}"}
    torch.stack(list(losses.values())).sum().backward()
    rows = dict(zip(student.head.rows, student.head.projection.weight.grad.split(list(student.head.rows.values()))))
    blocks = {"seg": {"present", "mask"}, "det": {"box", "conf", "det"}, "cls": {"cls"}}[task]
    assert {name for name, row in rows.items() if row.any()} == blocks
