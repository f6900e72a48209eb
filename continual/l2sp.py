"""L2-SP: weights decay towards where the stage started instead of towards zero.

Source: arXiv 1802.01483, section 3. Weights that serve the new tasks alone are free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from continual.base import Losses, Remedy, Stage, Step, own_weights


class L2SP(Remedy):
    """weight / 2 x squared distance from the stage's start."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.bound: list[tuple[Tensor, Tensor, Tensor]] = []

    def before_stage(self, stage: Stage) -> None:
        """Bind shared weights to where the stage starts, if there are old tasks."""
        self.bound = []
        if stage.old:
            assert stage.model is not None
            assert stage.start is not None
            free, centre = own_weights(stage.model, stage.tasks), dict(stage.start.named_parameters())
            none = torch.tensor(False, device=stage.model.mean.device)
            self.bound = [(p, centre[name], free.get(name, none)) for name, p in stage.model.named_parameters()]

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Term "l2sp"."""
        if not self.bound:
            return {}
        parts = [(p - centre).square().masked_fill(free, 0).sum() for p, centre, free in self.bound]
        return {"l2sp": self.weight / 2 * torch.stack(parts).sum()}
