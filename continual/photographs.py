"""Photographs of stage 0, replayed without labels: experts and the previous checkpoint say what they show.

On 240 images a network soon knows its expert's answers by heart; on photographs, which nobody has annotated, it learns
how the expert finds them. Source: distillation of detectors on unlabelled images of any scene, arXiv 2110.15017.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from continual.base import Remedy, Stage, Step
from continual.compose import nothing_known
from continual.replay import MOST


class Photographs(Remedy):
    """Adds `per_step` varied photographs to each step.

    Raises ValueError for a number outside 1 to 10.
    """

    def __init__(self, per_step: int) -> None:
        if not 1 <= per_step <= MOST:
            raise ValueError(f"continual.photographs is {per_step}: show 1 to {MOST} a step, or 0 for none")
        self.per_step = per_step
        self.draw: Callable[[int], Tensor] | None = None

    def before_stage(self, stage: Stage) -> None:
        """Find the photographs."""
        self.draw = stage.photographs

    def before_step(self, step: Step) -> None:
        """Append photographs without annotation."""
        assert self.draw is not None
        step.add(self.draw(self.per_step).to(step.images.device), nothing_known(self.per_step, step.targets))
