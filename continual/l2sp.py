"""L2-SP: weights decay towards where the stage started instead of towards zero.

Source: arXiv 1802.01483, section 3. Weights that serve the new tasks alone are free.
"""

from __future__ import annotations

from typing import Any

import torch

from continual.base import Losses, Remedy, Stage, Step, own_weights


class L2SP(Remedy):
    """weight / 2 x squared distance from the stage's start."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.stage: Stage | None = None

    def before_stage(self, stage: Stage) -> None:
        """Take the stage's start as centre, if there are old tasks."""
        self.stage = stage if stage.old and stage.start is not None else None
        if self.stage is not None and stage.model is not None:
            self.free = own_weights(stage.model, stage.tasks)

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Term "l2sp"."""
        if self.stage is None or self.stage.model is None or self.stage.start is None:
            return {}
        start = dict(self.stage.start.named_parameters())
        parts = []
        for name, p in self.stage.model.named_parameters():
            moved = (p - start[name]).square()
            parts.append(moved.masked_fill(self.free[name], 0).sum() if name in self.free else moved.sum())
        return {"l2sp": self.weight / 2 * torch.stack(parts).sum()}
