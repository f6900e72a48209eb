from __future__ import annotations

import pytest
import torch
from torch import Tensor

from continual.base import Stage, Step
from continual.replay_sets import ReplaySets
from models.targets import NO_CLASS, Targets
from tests.models.builders import random_targets

SIZE = 32
SETS = {"seg": 12, "det": 3}
"""Images of each old set."""


def examples(task: str) -> list[tuple[Tensor, Targets]]:
    """Images of one grey each: 0.01, 0.02, ... for masks, 0.51, 0.52, ... for boxes."""
    first = {"seg": 0.0, "det": 0.5}[task]
    grey = [torch.full((3, SIZE, SIZE), first + (i + 1) / 100) for i in range(SETS[task])]
    return [(image, random_targets([task], size=SIZE, seed=i)) for i, image in enumerate(grey)]


def replayed(remedy: ReplaySets, old: tuple[str, ...]) -> Step:
    """A step of two new images in a stage after those of `old`."""
    remedy.before_stage(Stage(("cls",), old, None, lambda: [], old_examples=examples))
    step = Step(torch.zeros(2, 3, SIZE, SIZE), random_targets(["cls"] * 2, size=SIZE))
    remedy.before_step(step)
    return step


@pytest.mark.parametrize("per_step", [-1, 0, 11])
def test_more_than_the_assignment_allows_is_refused(per_step: int) -> None:
    with pytest.raises(ValueError, match=f"continual.replay_sets is {per_step}: show 1 to 10 images of each old task"):
        ReplaySets(per_step)


def test_nothing_is_added_in_the_first_stage() -> None:
    assert len(replayed(ReplaySets(4), old=()).images) == 2


def test_each_old_task_has_its_share_of_every_step() -> None:
    step = replayed(ReplaySets(2), old=("seg", "det"))
    grey = step.images[:, 0, 0, 0]
    assert step.images.shape == (6, 3, SIZE, SIZE)
    assert not grey[:2].any()  # the new images stay first
    assert ((grey > 0) & (grey < 0.5)).tolist() == [False, False, True, True, False, False]
    assert step.targets.has_boxes.tolist() == [False] * 4 + [True] * 2
    assert (step.targets.classes == NO_CLASS).tolist() == [False] * 2 + [True] * 4


def test_images_come_with_their_own_annotation_and_none_twice_in_a_step() -> None:
    step = replayed(ReplaySets(10), old=("seg",))
    known = {round(float(image[0, 0, 0]), 2): targets for image, targets in examples("seg")}
    grey = [round(float(g), 2) for g in step.images[2:, 0, 0, 0]]
    assert len(set(grey)) == len(grey) == 10
    for value, mask in zip(grey, step.targets.masks[2:]):
        assert torch.equal(mask, known[value].masks[0])


def test_a_set_smaller_than_the_share_is_shown_whole() -> None:
    assert len(replayed(ReplaySets(10), old=("det",)).images) == 2 + SETS["det"]


def test_the_whole_set_has_its_turn() -> None:
    remedy, seen = ReplaySets(3), set()
    for _ in range(40):
        seen |= {round(float(g), 2) for g in replayed(remedy, ("seg",)).images[2:, 0, 0, 0]}
    assert len(seen) == SETS["seg"]
