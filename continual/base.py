"""The protocol of a remedy against forgetting, and the list of all there are.

A remedy is one file with one class; to add one, write it beside `distill.py` and name it in `continual/__init__.py`.
Hooks run in this order: before_stage, (before_step, penalty) for every step, after_stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.head import Queries
from models.onehead import OneHead
from models.targets import Targets

Losses = dict[str, Tensor]


@dataclass
class Stage:
    """What a remedy may know about the stage that begins or ends.

    tasks: learnt in this stage; old: learnt before; start: the weights the stage starts from, in eval mode and without
    gradients (averaged weights of the previous stage), None in the first stage; examples: reads this stage's training
    images, float32 (3, S, S) in 0..1, without augmentation, each with its annotation as a batch of one.
    """

    tasks: tuple[str, ...]
    old: tuple[str, ...]
    start: OneHead | None
    examples: Callable[[], list[tuple[Tensor, Targets]]]


@dataclass
class Step:
    """One training step as the remedies see and change it before the forward pass.

    images: float32 (B, 3, S, S) in 0..1; targets: their annotations; queries: object queries that the student shall
    use instead of its own selection.
    """

    images: Tensor
    targets: Targets
    queries: Queries | None = None


class Remedy:
    """Does nothing; each remedy overrides what it needs."""

    def before_stage(self, stage: Stage) -> None:
        """Called once, before the first step of a stage (again after a resume)."""

    def before_step(self, step: Step) -> None:
        """Called before the forward pass; may add images and choose queries."""

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Named loss terms, already weighted; empty while there is nothing to remember."""
        return {}

    def after_stage(self, stage: Stage) -> None:
        """Called once, when a stage has ended."""

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
