from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from continual import ContinualConfig, Remedy, Replay, Stage, Step, remedies
from continual.base import Losses
from models.criterion import Criterion, LossConfig
from models.onehead import OneHead
from tests.models.builders import images, random_targets, tiny

ORDER = ("seg", "det", "cls")
NONE = ContinualConfig(distill=0, recall=0, replay_sets=0)


class Anchor(Remedy):
    """What a user would write: pulls the weights back to where the stage started, and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: list[int] = []
        self.teacher_outputs: list[int] = []
        self.start: dict[str, Tensor] = {}
        self.model: OneHead | None = None

    def before_stage(self, stage: Stage) -> None:
        self.calls.append(f"before_stage {'+'.join(stage.tasks)} after {'+'.join(stage.old) or 'nothing'}")
        self.start = dict(stage.start.named_parameters()) if stage.start else {}

    def before_step(self, step: Step) -> None:
        self.calls.append("before_step")
        self.seen.append(len(step.images))
        self.teacher_outputs.append(0 if step.teacher_outputs is None else len(step.teacher_outputs["pred_class"]))

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        self.calls.append("penalty")
        assert self.model is not None
        if not self.start:
            return {}
        pairs = [(p, self.start[n]) for n, p in self.model.named_parameters()]
        return {"anchor": 10.0 * torch.stack([(a - b).square().sum() for a, b in pairs]).sum()}

    def after_stage(self, stage: Stage) -> None:
        self.calls.append(f"after_stage {'+'.join(stage.tasks)}")

    def after_training(self, stage: Stage) -> None:
        self.calls.append(f"after_training {'+'.join(stage.tasks)}")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}


def run(chosen: Mapping[str, Remedy], steps: int = 2) -> list[dict[str, float]]:
    """The documented loop over three stages, as small as it can be; returns the terms of every step."""
    torch.manual_seed(0)
    model, criterion = tiny(), Criterion(LossConfig())
    for remedy in chosen.values():
        if isinstance(remedy, Anchor):
            remedy.model = model
    history = []
    for i, task in enumerate(ORDER):
        start = copy.deepcopy(model).eval().requires_grad_(False) if i else None
        kept = [(image, random_targets([task], seed=n)) for n, image in enumerate(images(3, seed=i))]
        stage = Stage((task,), ORDER[:i], start, lambda kept=kept: kept, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for remedy in chosen.values():
            remedy.before_stage(stage)
        for n in range(steps):
            step = Step(images(2, seed=10 + n), random_targets([task] * 2, seed=n))
            for remedy in chosen.values():
                remedy.before_step(step)
            outputs = model(step.images, step.queries)
            losses = criterion(outputs, step.targets)
            for remedy in chosen.values():
                losses.update(remedy.penalty(step, outputs))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            history.append({k: v.item() for k, v in losses.items()})
        for remedy in chosen.values():
            remedy.after_training(stage)
        for remedy in chosen.values():
            remedy.after_stage(stage)
    return history


def test_a_strangers_remedy_is_called_in_the_documented_order() -> None:
    anchor = Anchor()
    history = run({"anchor": anchor})
    step = ["before_step", "penalty"] * 2
    assert anchor.calls == [
        *("before_stage seg after nothing", *step, "after_training seg", "after_stage seg"),
        *("before_stage det after seg", *step, "after_training det", "after_stage det"),
        *("before_stage cls after seg+det", *step, "after_training cls", "after_stage cls"),
    ]
    assert ["anchor" in losses for losses in history] == [False, False, True, True, True, True]
    assert history[2]["anchor"] == 0  # the first step of a stage starts at its anchor
    assert history[3]["anchor"] > 0


def test_remedies_add_up() -> None:
    anchor = Anchor()
    chosen = {**remedies(replace(NONE, replay=2, replay_step=3, distill=1.0)), "anchor": anchor}
    assert list(chosen) == ["replay", "distill", "anchor"]
    history = run(chosen)
    added = [{k for k in losses if k.startswith("distill") or k == "anchor"} for losses in history]
    assert added[0::2] == added[1::2]
    assert added[0::2] == [set(), {"distill_seg", "anchor"}, {"distill_seg", "distill_det", "anchor"}]
    assert "replay_seg" in history[2]
    # Later remedies see what earlier ones added: 2 images of 1 old task, then 3 out of 4 of two.
    assert anchor.seen == [2, 2, 4, 4, 5, 5]
    replay = chosen["replay"]
    assert isinstance(replay, Replay)
    assert len(replay.buffer) == 6
    assert anchor.teacher_outputs[-1] == 5  # the teacher was shown the replayed images as well
    assert history[2]["seg_ce"] > 0  # and the old task is learnt from them
    assert "l1" not in history[0]


def test_configuration_switches_remedies_on_and_off() -> None:
    assert list(remedies(ContinualConfig())) == ["replay_sets", "distill", "recall"]
    assert remedies(NONE) == {}
    assert list(remedies(replace(NONE, distill=0.5))) == ["distill"]
    assert list(remedies(replace(NONE, replay=10))) == ["replay"]
    everything = ContinualConfig(
        replay=10,
        replay_sets=10,
        expert=1.0,
        expert_seg="seg.pt",
        compose=0.5,
        lwf=1.0,
        distill=0.5,
        hold=1.0,
        recall=1.0,
        ewc=1.0,
        l2sp=1.0,
        average=0.5,
        freeze=True,
    )
    # Added images have to be there before any teacher is asked about them.
    names = [
        "replay",
        "replay_sets",
        "compose",
        "expert",
        "lwf",
        "distill",
        "hold",
        "recall",
        "ewc",
        "l2sp",
        "average",
        "freeze",
    ]
    assert list(remedies(everything)) == names


def test_a_remedy_that_overrides_nothing_changes_nothing() -> None:
    remedy = Remedy()
    assert run({"nothing": remedy}, steps=1) == run({}, steps=1)
    assert remedy.state_dict() == {}
    remedy.load_state_dict({})


def test_images_are_added_behind_the_others_in_channels_last_order() -> None:
    first, second = images(2).contiguous(memory_format=torch.channels_last), images(1, seed=5)
    step = Step(first, random_targets(["cls"] * 2))
    step.append([(second[0], random_targets(["det"], seed=3))])
    assert step.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(step.images, torch.cat([first, second]))
    assert step.targets.has_boxes.tolist() == [False, False, True]
    assert torch.equal(step.targets.boxes[2], random_targets(["det"], seed=3).boxes[0])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            ContinualConfig(expert=1.0),
            "continual.expert is 1.0: name a checkpoint as",
        ),
        (replace(NONE, compose=0.25, recall=1.0), "continual.compose is 0.25: set continual.expert, distill or lwf"),
        (ContinualConfig(ewc=1.0, freeze_statistics="last"), "continual.freeze_statistics to never, later or always"),
    ],
)
def test_remedies_that_would_do_nothing_or_something_else_are_refused(config: ContinualConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        remedies(config)


def test_what_a_remedy_needs_is_enough() -> None:
    assert "compose" in remedies(replace(NONE, compose=0.25, distill_features=1.0))
    assert "compose" in remedies(replace(NONE, compose=0.25, expert=1.0, expert_det="w.pt"))
    for kept in ("never", "later", "always"):
        assert "ewc" in remedies(ContinualConfig(ewc=1.0, freeze_statistics=kept))  # type: ignore[arg-type]
