"""Photographs of stage 0, replayed without labels: experts and the previous checkpoint say what they show.

An expert that teaches on 240 images alone has little to add to their labels; photographs, which nobody has annotated,
could show more. Measured with an expert no better than its student, they brought nothing (docs/search-log.md). Source:
incremental detection with unlabelled images in the wild, arXiv 2110.15017.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from continual.base import Remedy, Stage, Step
from continual.compose import nothing_known
from continual.replay import MOST


class Photographs(Remedy):
    """Adds `per_step` varied photographs to each step, in stages where somebody teaches on them.

    Several processes share them. Raises ValueError for a number outside 1 to 10.
    """

    def __init__(self, per_step: int) -> None:
        if not 1 <= per_step <= MOST:
            raise ValueError(f"continual.photographs is {per_step}: show 1 to {MOST} a step, or 0 for none")
        self.per_step = per_step
        self.draw: Callable[[int], Tensor] | None = None
        self.count = per_step

    def before_stage(self, stage: Stage) -> None:
        """Take the photographs, if the stage has them, and see how many this process shows."""
        self.draw, self.count = stage.photographs, stage.share(self.per_step)

    def before_step(self, step: Step) -> None:
        """Append photographs without annotation."""
        if self.draw is not None and self.count:
            step.add(self.draw(self.count), nothing_known(self.count, step.targets))
