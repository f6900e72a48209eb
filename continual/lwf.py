"""Learning without Forgetting: the old tasks' final outputs stay what they were on the new stage's images.

Source: arXiv 1606.09282, section 3, for labels; per pixel as in arXiv 1911.03462, section 4, here only for pixels that
the teacher is sure of. Boxes and scores are those of the teacher's own queries.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from continual.base import Losses, Step
from continual.teacher_remedy import TeacherRemedy, divergence, object_distance

TEMPERATURE = 2.0
"""Softens the labels; the paper's value (section 3)."""


class LwF(TeacherRemedy):
    """Penalty on the distance to the old outputs; pixels count from a teacher's probability of `sure` on."""

    def __init__(self, weight: float, sure: float) -> None:
        if not 0 <= sure <= 1:
            raise ValueError(f"continual.lwf_sure is {sure}: it is a probability, between 0 and 1")
        self.weight, self.sure = weight, sure

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Terms "lwf_seg", "lwf_det", "lwf_cls" for the old tasks."""
        if self.stage is None or step.teacher_outputs is None:
            return {}
        teacher = step.teacher_outputs
        losses: Losses = {}
        if "seg" in self.stage.old:
            losses["lwf_seg"] = self.masks(outputs["pred_masks"], teacher["pred_masks"])
        if "det" in self.stage.old:
            losses["lwf_det"] = object_distance(outputs, teacher)
        if "cls" in self.stage.old:
            losses["lwf_cls"] = divergence(outputs["pred_class"], teacher["pred_class"], 1, TEMPERATURE).mean()
        return {name: self.weight * value for name, value in losses.items()}

    def masks(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean divergence over the pixels that the teacher is sure of; 0 if there are none."""
        sure = teacher.float().softmax(1).amax(1) >= self.sure
        distances = divergence(student, teacher, 1, TEMPERATURE)
        return (distances * sure).sum() / sure.sum().clamp(min=1)
