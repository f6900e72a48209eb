"""Remedies with a teacher, and distances between the outputs of student and teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.base import Remedy, Stage, Step
from models.pretrained_backbone import PretrainedBackbone

LEAST_SIDE = 0.02
"""Of the teacher's boxes, as a share of the image: distances are in box sides, and one of no width has none."""


class TeacherRemedy(Remedy):
    """A remedy with the stage's start as teacher, which is rebuilt from its checkpoint, not stored."""

    stage: Stage | None = None

    def before_stage(self, stage: Stage) -> None:
        """Take the stage's start as teacher, if there are old tasks."""
        self.stage = stage if stage.old and stage.start is not None else None

    def before_step(self, step: Step) -> None:
        """Query the teacher."""
        if self.stage is not None:
            step.query_teacher(self.stage)


class PretrainedTeacherRemedy(Remedy):
    """A remedy with the backbone that the run began with as teacher; a run from random weights has none."""

    teacher: PretrainedBackbone | None = None

    def before_stage(self, stage: Stage) -> None:
        """Take the pretrained backbone as teacher."""
        self.teacher = stage.pretrained

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Compute the teacher's maps."""
        self.maps: list[Tensor] = self.teacher.maps(step.images) if self.teacher is not None else []


def divergence(student: Tensor, teacher: Tensor, dim: int, temperature: float = 1.0) -> Tensor:
    """KL divergence from teacher to student logits along `dim`, which is summed away.

    Softened and scaled back by `temperature` as in arXiv 1503.02531, section 2.
    """
    log_p = (student.float() / temperature).log_softmax(dim)
    log_q = (teacher.float() / temperature).log_softmax(dim)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim)


def object_distance(student: dict[str, Any], teacher: dict[str, Any]) -> Tensor:
    """Distance of classes, and of boxes weighted by how sure the teacher is of the best class."""
    logits = teacher["pred_logits"].float()
    chance, conf = logits.sigmoid(), logits.amax(-1).sigmoid()
    # Excess over the teacher's own entropy, so that the term is 0 where the two agree.
    bce = F.binary_cross_entropy_with_logits
    off = bce(student["pred_logits"].float(), chance, reduction="none") - bce(logits, chance, reduction="none")
    box_size = teacher["pred_boxes"][..., 2:].float().clamp(min=LEAST_SIDE).repeat(1, 1, 2)
    box = ((student["pred_boxes"] - teacher["pred_boxes"]).abs() / box_size).sum(-1)
    return (off.sum() + (conf * box).sum()) / conf.sum().clamp(min=1)


def feature_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of maps (B, D, H, W) in units of the teacher's own mean square, averaged over levels."""
    pairs = [(s.float(), t.float()) for s, t in zip(student, teacher)]
    return torch.stack([(s - t).square().mean() / t.square().mean().clamp(min=1e-6) for s, t in pairs]).mean()
