"""Several processes share the images that remedies add to a step: together they show as many as one would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from continual import Examples, Remedy, Replay, Stage, Step
from continual.replay_sets import ReplaySets
from engine.training.batches import process_share
from tests.models.builders import images, random_targets

KEPT = 7
"""Images of the old task."""


def examples(*_: object) -> Examples:
    return [(image, random_targets(["seg"], seed=i)) for i, image in enumerate(images(KEPT))]


def replay(per_step: int) -> Replay:
    remedy = Replay(10, per_step, weight=1.0, vary=False)
    remedy.after_stage(Stage(("seg",), (), None, examples))
    return remedy


def added(remedy: Remedy, rank: int, world: int) -> int:
    """Images that one process adds to a step."""
    share = partial(process_share, rank=rank, world=world)
    stage = Stage(("det",), ("seg",), None, examples, old_examples=examples, share=share)
    remedy.before_stage(stage)
    step = Step(images(2), random_targets(["det"] * 2))
    remedy.before_step(step)
    assert len(step.targets) == len(step.images)
    return len(step.images) - 2


@pytest.mark.parametrize("make", [ReplaySets, replay])
@pytest.mark.parametrize(("per_step", "world"), [(1, 2), (2, 4), (4, 2), (5, 3), (10, 2), (10, 3)])
def test_all_processes_together_show_the_images_of_a_step(
    make: Callable[[int], Remedy], per_step: int, world: int
) -> None:
    counts = [added(make(per_step), rank, world) for rank in range(world)]
    assert sum(counts) == added(make(per_step), 0, 1) == min(per_step, KEPT)
    assert max(counts) - min(counts) <= 1


def test_one_process_draws_what_it_would_draw_without_others() -> None:
    found = []
    for stage in (
        Stage(("det",), ("seg",), None, examples, old_examples=examples),
        Stage(("det",), ("seg",), None, examples, old_examples=examples, share=partial(process_share, rank=0, world=1)),
    ):
        torch.manual_seed(4)
        remedy, step = ReplaySets(5), Step(images(1, seed=2), random_targets(["det"]))
        remedy.before_stage(stage)
        remedy.before_step(step)
        found.append(step.images)
    torch.manual_seed(4)
    expected = torch.stack([images(KEPT)[i] for i in torch.randperm(KEPT)[:5].tolist()])
    assert torch.equal(found[0][1:], expected)
    assert torch.equal(found[1], found[0])
