"""Unlabelled photographs, on which only teachers have something to say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from continual import ContinualConfig, Stage, Step, remedies
from continual.expert import Expert
from continual.photographs import Photographs
from models.criterion import Criterion, LossConfig
from tests.models.builders import images, random_targets, tiny


def drawn(count: int) -> Tensor:
    return images(count, seed=9)


def shown(per_step: int, tasks: list[str | None]) -> Step:
    remedy = Photographs(per_step)
    remedy.before_stage(Stage(("det",), (), None, list, photographs=drawn))
    step = Step(images(len(tasks), seed=5), random_targets(tasks))
    remedy.before_step(step)
    return step


def test_they_are_appended_without_annotation() -> None:
    step = shown(3, ["det", "det"])
    assert torch.equal(step.images[:2], images(2, seed=5))
    assert torch.equal(step.images[2:], drawn(3))
    assert step.targets.has_boxes.tolist() == [True, True, False, False, False]
    for field in ("boxes", "labels"):
        assert [len(v) for v in getattr(step.targets, field)[2:]] == [0, 0, 0]
    assert torch.equal(step.targets.masks[2:], random_targets([None] * 3).masks)
    assert torch.equal(step.targets.classes[2:], random_targets([None] * 3).classes)


def test_labels_alone_teach_nothing_on_them() -> None:
    """Gradients of the criterion do not reach a photograph's pixels, those of an expert do."""
    step, model, expert = shown(2, ["det"]), tiny(), tiny(seed=1).requires_grad_(False)
    pixels = step.images.clone().requires_grad_(True)
    outputs = model(pixels)
    sum(Criterion(LossConfig())(outputs, step.targets).values(), torch.zeros(())).backward(retain_graph=True)
    assert pixels.grad is not None
    assert pixels.grad[0].any()
    assert not pixels.grad[1:].any()
    remedy = Expert(1.0)
    remedy.before_stage(Stage(("det",), (), None, list, expert=lambda _: expert))
    remedy.before_step(step)
    remedy.penalty(step, outputs)["expert_det"].backward()
    assert all(grad.any() for grad in pixels.grad[1:])


def test_they_come_before_teachers_are_asked() -> None:
    names = list(remedies(ContinualConfig(photographs=2, expert=1.0, expert_det="det.pt")))
    assert names.index("photographs") < min(map(names.index, ("expert", "distill", "recall")))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (ContinualConfig(photographs=11), "continual.photographs is 11: show 1 to 10 a step, or 0 for none"),
        (
            ContinualConfig(photographs=2, distill=0),
            "continual.photographs is 2: set continual.expert, distill or lwf, which",
        ),
    ],
)
def test_a_number_outside_the_rules_or_without_a_teacher_is_refused(config: ContinualConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        remedies(config)
