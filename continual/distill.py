"""Distillation from the previous stage: the old outputs, on whatever images the new stage shows.

Sources: Learning without Forgetting, arXiv 1606.09282; selecting queries as the teacher does instead of matching
student and teacher queries, arXiv 2508.11339. Dense outputs are compared position by position; decoder outputs with the
student run on the teacher's selection and reference boxes, since query i of two free selections are two things.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from continual.base import Losses, Remedy, Stage, Step


class Distill(Remedy):
    """Penalty on the distance to the teacher's outputs for the old tasks.

    The teacher is the model the stage starts from, so it is rebuilt, not stored.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.stage: Stage | None = None
        self.taught: dict[str, Any] = {}

    def before_stage(self, stage: Stage) -> None:
        """Take the stage's start as teacher, if there are old tasks."""
        self.stage = stage if stage.old and stage.start is not None else None

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Ask the teacher; where detection is old, the student follows its selection of queries."""
        if self.stage is None or self.stage.start is None:
            return
        self.taught = self.stage.start(step.images)
        if "det" in self.stage.old:
            step.queries = self.taught["queries"]

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Terms "distill_seg", "distill_det", "distill_cls" for the old tasks."""
        if self.stage is None:
            return {}
        terms = {"seg": self.masks, "det": self.objects, "cls": self.classes}
        return {f"distill_{task}": self.weight * terms[task](outputs) for task in self.stage.old}

    def masks(self, outputs: dict[str, Any]) -> Tensor:
        """Mean divergence per pixel."""
        return divergence(outputs["pred_masks"], self.taught["pred_masks"], dim=1).mean()

    def classes(self, outputs: dict[str, Any]) -> Tensor:
        """Mean divergence per image."""
        return divergence(outputs["pred_class"], self.taught["pred_class"], dim=1).mean()

    def objects(self, outputs: dict[str, Any]) -> Tensor:
        """Dense tokens by position, then every decoder layer's queries, which share index and reference box."""
        pairs = [(outputs["dense"], self.taught["dense"]), (outputs, self.taught)]
        pairs += [(s, t) for s, t in zip(outputs["aux_outputs"], self.taught["aux_outputs"]) if "pred_boxes" in s]
        return torch.stack([object_distance(s, t) for s, t in pairs]).sum()


def divergence(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """KL divergence from teacher to student logits along `dim`, which is summed away."""
    log_p, log_q = student.float().log_softmax(dim), teacher.float().log_softmax(dim)
    return (log_q.exp() * (log_q - log_p)).sum(dim)


def object_distance(student: dict[str, Any], teacher: dict[str, Any]) -> Tensor:
    """Distance of objectness, class and box, the latter two weighted by the teacher's confidence."""
    conf = teacher["pred_conf"].float().sigmoid()
    # Excess over the teacher's own entropy, so that the term is 0 where the two agree.
    bce = F.binary_cross_entropy_with_logits
    off = bce(student["pred_conf"].float(), conf, reduction="none") - bce(
        teacher["pred_conf"].float(), conf, reduction="none"
    )
    box_size = teacher["pred_boxes"][..., 2:].clamp(min=0.02).repeat(1, 1, 2)
    box = ((student["pred_boxes"] - teacher["pred_boxes"]).abs() / box_size).sum(-1)
    kind = divergence(student["pred_logits"], teacher["pred_logits"], dim=-1)
    return (off.sum() + (conf * (kind + box)).sum()) / conf.sum().clamp(min=1)
