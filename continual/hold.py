"""Holding on to stage 0: in every stage, the backbone's feature maps stay near those of the pretrained one.

Nothing in the first two stages needs what stage 0 knows about classes, so without this it fades before the last one
can use it. Sources: feature maps as hints, arXiv 1412.6550; held near the pretrained ones, DELTA, arXiv 1901.09229.
"""

from __future__ import annotations

from typing import Any

from continual.base import Losses, Step
from continual.teacher_remedy import PretrainedTeacherRemedy, feature_distance


class Hold(PretrainedTeacherRemedy):
    """weight x relative squared distance from the pretrained backbone's feature maps, on whatever a step shows."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Term "hold"."""
        if self.teacher is None:
            return {}
        return {"hold": self.weight * feature_distance(outputs["backbone_maps"], self.maps)}
