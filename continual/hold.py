"""Holding on to stage 0: in every stage, feature maps stay near those of the pretrained network.

Nothing in the first two stages asks for what stage 0 knows about classes, so without this it fades before the last one
can use it. Sources: feature maps as hints, arXiv 1412.6550; held near the pretrained ones, DELTA, arXiv 1901.09229.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from continual.base import Losses, Remedy, Stage, Step
from continual.teaching import feature_distance
from models.onehead import OneHead


class Hold(Remedy):
    """weight x relative squared distance from the pretrained network's feature maps, on whatever a step shows."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.teacher: OneHead | None = None

    def before_stage(self, stage: Stage) -> None:
        """Take the pretrained network as teacher; a run from random weights has none."""
        self.teacher = stage.pretrained

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Ask the teacher."""
        self.maps: list[Tensor] = self.teacher.features(step.images) if self.teacher is not None else []

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Term "hold"."""
        if self.teacher is None:
            return {}
        return {"hold": self.weight * feature_distance(outputs["maps"], self.maps)}
