"""Which remedies against forgetting are on, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ContinualConfig:
    """Remedies add up; a weight or size of 0 switches one off."""

    freeze_statistics: Literal["never", "later", "always"] = "later"
    """Keep batch-norm statistics: in stages after the first, or always, as the weights of the start have them."""
    distill: float = 1.0
    """Weight of the distance to the previous stage's outputs (LwF, distillation)."""
    replay: int = 0
    """Images kept of each old task, at most 10."""
    replay_step: int = 2
    """Kept images added to each step."""
