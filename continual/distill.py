"""Distillation from the previous stage: all that the old tasks read, on whatever images the new stage shows.

Sources: knowledge distillation, arXiv 1503.02531; feature maps as hints, arXiv 1412.6550; query i compared with query
i instead of a Hungarian match, arXiv 2508.11339 (queries are selected image by image here, so the student is run on the
teacher's selection and reference boxes). Dense outputs are compared position by position, decoder outputs layer by
layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from continual.base import Losses, Step
from continual.boxed_masks import within_boxes
from continual.teacher_remedy import TeacherRemedy, divergence, feature_distance, object_distance


class Distill(TeacherRemedy):
    """Penalty on the distance to the teacher's outputs for the old tasks, and to its feature maps.

    The teacher is the model the stage starts from, so it is rebuilt, not stored. boxes: correct its masks by an image's
    annotated boxes in the stage that learns these; from then on the teacher has learnt what they say.
    """

    def __init__(self, weight: float, features: float, boxes: bool) -> None:
        self.weight, self.features, self.boxes = weight, features, boxes

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Terms "distill_seg", "distill_det", "distill_cls" for the old tasks, and "distill_features"."""
        if self.stage is None or step.teacher_outputs is None:
            return {}
        terms = {"seg": self.masks, "det": self.objects, "cls": self.classes}
        teacher = dict(step.teacher_outputs)
        old = self.stage.old if self.weight else ()
        if self.boxes and "seg" in old and "det" in self.stage.tasks and self.stage.mask_class is not None:
            teacher["pred_masks"] = within_boxes(teacher["pred_masks"], step.targets, self.stage.mask_class)
        losses = {f"distill_{task}": self.weight * terms[task](outputs, teacher) for task in old}
        if self.features:
            losses["distill_features"] = self.features * feature_distance(outputs["maps"], teacher["maps"])
        return losses

    def masks(self, outputs: dict[str, Any], teacher: dict[str, Any]) -> Tensor:
        """Mean divergence per pixel."""
        return divergence(outputs["pred_masks"], teacher["pred_masks"], dim=1).mean()

    def classes(self, outputs: dict[str, Any], teacher: dict[str, Any]) -> Tensor:
        """Mean divergence per image."""
        return divergence(outputs["pred_class"], teacher["pred_class"], dim=1).mean()

    def objects(self, outputs: dict[str, Any], teacher: dict[str, Any]) -> Tensor:
        """Mean over dense tokens by position and every decoder layer's queries, which share index and reference box."""
        pairs = [(outputs["dense"], teacher["dense"]), (outputs, teacher)]
        pairs += [(s, t) for s, t in zip(outputs["aux_outputs"], teacher["aux_outputs"]) if "pred_boxes" in s]
        return torch.stack([object_distance(s, t) for s, t in pairs]).mean()
