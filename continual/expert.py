"""Experts: networks that have learnt the stage's own task before, such as one behind a larger backbone, teach it too.

The head's geometry is the same behind every backbone, so outputs are compared position by position. Sources: knowledge
distillation, arXiv 1503.02531; a teacher of the same task that is better than the student, arXiv 2106.05237.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from continual.base import Losses, Remedy, Stage, Step
from continual.teacher_remedy import divergence, object_distance
from models.head import Outputs
from models.onehead import OneHead


class Expert(Remedy):
    """weight x distance from the experts' outputs for the tasks of the stage, on whatever a step shows."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.experts: dict[str, OneHead] = {}
        self.outputs: dict[str, Outputs] = {}

    def before_stage(self, stage: Stage) -> None:
        """Load the experts of the stage's tasks."""
        found = {task: stage.expert(task) for task in stage.tasks}
        self.experts = {task: expert for task, expert in found.items() if expert is not None}

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Query the experts."""
        self.outputs = {task: expert(step.images) for task, expert in self.experts.items()}

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Terms "expert_seg", "expert_det", "expert_cls"."""
        terms = {"seg": masks, "det": objects, "cls": labels}
        return {f"expert_{task}": self.weight * terms[task](outputs, theirs) for task, theirs in self.outputs.items()}


def masks(student: Outputs, expert: Outputs) -> Tensor:
    """Mean divergence per pixel of every layer's masks from the expert's last."""
    layers = [student, *(layer for layer in student["aux_outputs"] if "pred_masks" in layer)]
    return torch.stack([divergence(s["pred_masks"], expert["pred_masks"], dim=1).mean() for s in layers]).mean()


def objects(student: Outputs, expert: Outputs) -> Tensor:
    """Distance of dense tokens by position; queries are each network's own choice."""
    return object_distance(student["dense"], expert["dense"])


def labels(student: Outputs, expert: Outputs) -> Tensor:
    """Mean divergence per image."""
    return divergence(student["pred_class"], expert["pred_class"], dim=1).mean()
