"""Recalling stage 0: any region of an image is still named as the pretrained backbone names it.

What the backbone has learnt before, in stage 0 or on ImageNet, is the first task: to name what a region shows. No later
stage has its labels, so this is Learning without Forgetting (arXiv 1606.09282) for it. Unlike `hold`, which keeps the
maps themselves near, it lets them move wherever the naming does not care.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from continual.base import Losses, Stage, Step
from continual.teacher_remedy import PretrainedTeacherRemedy, divergence

REGIONS = 8
"""Regions of each image that are named at a step."""
SIDES = (0.2, 0.8)
"""Shortest and longest side of a region, as shares of the image's."""


class Recall(PretrainedTeacherRemedy):
    """weight x KL divergence from what the pretrained backbone calls random regions, by its own readout."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def before_stage(self, stage: Stage) -> None:
        """Take the pretrained backbone as teacher, if it has a readout."""
        super().before_stage(stage)
        if self.teacher is not None and self.teacher.readout is None:
            self.teacher = None

    def before_step(self, step: Step) -> None:
        """Compute the teacher's maps and draw regions."""
        super().before_step(step)
        self.boxes = random_boxes(len(step.images), REGIONS, step.images.device)

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Term "recall", the mean over regions."""
        if self.teacher is None:
            return {}
        student, teacher = (self.teacher.name(maps, self.boxes) for maps in (outputs["backbone_maps"], self.maps))
        return {"recall": self.weight * divergence(student, teacher, dim=-1).mean()}


def random_boxes(images: int, count: int, device: torch.device) -> Tensor:
    """Boxes (B, T, 4), cx cy w h as fractions, that lie within the image."""
    size = torch.empty(images, count, 2, device=device).uniform_(*SIDES)
    centre = size / 2 + torch.rand_like(size) * (1 - size)
    return torch.cat([centre, size], dim=-1)
