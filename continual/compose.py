"""Composed images: four images of the step, shrunk, beside each other, unlabelled: the teacher gives their targets.

An image of the classification stage shows one large object; a teacher of boxes and masks finds more in four small
ones. Without another remedy that distils from the teacher they do nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from continual.base import Remedy, Stage, Step
from models.targets import NO_CLASS, VOID, Targets


class Compose(Remedy):
    """Adds `share` as many composed images as a step has."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.active = False

    def before_stage(self, stage: Stage) -> None:
        """Compose only where there is a teacher."""
        self.active = bool(stage.old)

    def before_step(self, step: Step) -> None:
        """Append composed images without annotation."""
        count = round(self.share * len(step.images)) if self.active else 0
        if not count:
            return
        order = torch.cat([torch.randperm(len(step.images)) for _ in range(-(-4 * count // len(step.images)))])
        small = F.interpolate(step.images, scale_factor=0.5, mode="area")[order[: 4 * count].to(step.images.device)]
        a, b, c, d = (small[i::4] for i in range(4))
        composed = torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)
        step.add(composed, nothing_known(count, step.targets))


def nothing_known(count: int, like: Targets) -> Targets:
    """Targets of `count` images without any annotation."""
    masks = like.masks.new_full((count, *like.masks.shape[1:]), VOID)
    no_boxes = [masks.new_zeros(0, 4, dtype=torch.float32)] * count
    return Targets(
        no_boxes,
        [masks.new_zeros(0)] * count,
        torch.zeros_like(masks[:, 0, 0], dtype=torch.bool),
        masks,
        torch.full_like(masks[:, 0, 0], NO_CLASS),
    )
