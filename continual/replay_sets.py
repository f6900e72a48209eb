"""Replay from whole sets: at each step, a few images of every old task, drawn from all that it was learnt from.

The assignment's limit, ten images a task a step, read as one of what a step shows; `replay` reads it as one of what is
stored. Source: experience replay, arXiv 1902.10486, with a memory that holds everything.
"""

from __future__ import annotations

import torch

from continual.base import Examples, Remedy, Stage, Step
from continual.replay import MOST


class ReplaySets(Remedy):
    """Adds `per_step` images of each old task, augmented anew, to each step; several processes share them.

    Raises ValueError for a number outside 1 to 10.
    """

    def __init__(self, per_step: int) -> None:
        if not 1 <= per_step <= MOST:
            raise ValueError(
                f"continual.replay_sets is {per_step}: show 1 to {MOST} images of each old task a step, or 0 for none"
            )
        self.per_step = per_step
        self.sets: list[tuple[Examples, int]] = []

    def before_stage(self, stage: Stage) -> None:
        """Open the sets of the old tasks, and see how many of each this process shows."""
        sets = [stage.old_examples(task) for task in stage.old]
        self.sets = [(images, stage.share(min(self.per_step, len(images)))) for images in sets]

    def before_step(self, step: Step) -> None:
        """Append images and their annotations to the batch."""
        for images, count in self.sets:
            step.append([images[i] for i in torch.randperm(len(images))[:count].tolist()])
