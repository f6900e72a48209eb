"""Distillation of a public network: linear readouts of a backbone's maps are to reproduce the teacher's outputs.

Feature distillation through training-only projections, on normalised targets (Universal Representations, arXiv
2204.02744; "knowledge distillation with a good teacher is patient and consistent", arXiv 2106.05237).
Shape suffixes: B batch, C channels, F features, H and W sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn import functional as F

from models.public_teacher import TeacherOutputs

POOLED_WEIGHT, LOGIT_WEIGHT = 2.0, 0.5
"""Weights of the distances of pooled features and of logits; that of each map is 1."""
EPS = 1e-5
"""Keeps channels in which a teacher's map does not vary from being divided by 0."""


class FeatureDistillation(nn.Module):
    """Readouts of a student's three maps, used in training only.

    Args:
        student, teacher: channels of the maps at strides 8, 16 and 32.
        features, classes: sizes of the teacher's pooled features and logits.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], features: int, classes: int) -> None:
        super().__init__()
        self.level = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in zip(student, teacher))
        # The finest map is what masks are read from, so it is to reproduce the teacher's deeper maps as well.
        self.semantic = nn.Conv2d(student[0], sum(teacher[1:]), 1)
        self.pooled = nn.Linear(sum(student), features)
        self.logits = nn.Linear(sum(student), classes)

    def forward(self, maps: Sequence[Tensor], outputs: TeacherOutputs) -> dict[str, Tensor]:
        """Loss terms of the student's maps (B, C, H/8, W/8), /16, /32; the teacher's may have other sides.

        "map8", "map16", "map32", "map8_semantic": share of the variance of the teacher's channels that is missed;
        "pooled": cosine distance of pooled features; "logits": KL divergence from the teacher's classes.
        """
        targets = [standardised(resized(t.float(), m)) for t, m in zip(outputs.maps, maps)]
        losses = {
            f"map{8 << i}": F.mse_loss(layer(m).float(), t)
            for i, (layer, m, t) in enumerate(zip(self.level, maps, targets))
        }
        coarse = F.avg_pool2d(maps[0], 2)
        semantic = torch.cat([targets[1], F.interpolate(targets[2], targets[1].shape[-2:], mode="bilinear")], dim=1)
        losses["map8_semantic"] = F.mse_loss(self.semantic(coarse).float(), semantic)
        pooled = pooled_maps(maps)
        distance = 1 - F.cosine_similarity(self.pooled(pooled).float(), outputs.pooled.float(), dim=1)
        student, teacher = self.logits(pooled).float().log_softmax(1), outputs.logits.float().log_softmax(1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return losses | {"pooled": POOLED_WEIGHT * distance.mean(), "logits": LOGIT_WEIGHT * divergence}


def pooled_maps(maps: Sequence[Tensor]) -> Tensor:
    """Means (B, C8 + C16 + C32) of maps (B, C, H, W) over their cells, side by side."""
    return torch.cat([reduce(m.float(), "b c h w -> b c", "mean") for m in maps], dim=1)


def resized(teacher: Tensor, student: Tensor) -> Tensor:
    """A teacher's map with as many cells as the student's, which shows the same view."""
    height, width = student.shape[-2:]
    return teacher if teacher.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(teacher, (height, width))


def standardised(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) with mean 0 and deviation 1 in each channel, over batch and cells."""
    mean, std = maps.mean((0, 2, 3), keepdim=True), maps.std((0, 2, 3), keepdim=True)
    return (maps - mean) / (std + EPS)
