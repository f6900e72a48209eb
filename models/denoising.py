"""Denoising queries: noised annotated boxes that the decoder learns to repair, in training only.

They need no matching and so teach box refinement from the first step. Sources: DN-DETR, arXiv 2203.01305; far
negatives: DINO, arXiv 2203.03605, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.matcher import Match
from models.targets import Targets

NEAR, FAR = 0.4, 1.0
"""Centre shifts: a positive moves up to NEAR / 2 of the box's size, a negative between NEAR and FAR of it."""


def denoising_boxes(targets: Targets, slots: int, groups: int) -> tuple[Tensor, Match]:
    """Make `groups` runs of `slots` boxes an image, and return which object each positive one stands for.

    A run holds every object once, slightly moved and scaled; its remaining slots hold far copies, to be scored as
    nothing. An image without objects gets random boxes, all negatives.

    Returns boxes (B, groups * slots, 4) float32 and the match of the positives.
    """
    all_boxes, matches = [], []
    for b in range(len(targets)):
        runs = []
        for g in range(groups):
            boxes, objects = one_run(targets.boxes[b], slots)
            runs.append(boxes)
            query = torch.arange(len(objects), device=boxes.device) + g * slots
            matches.append(
                Match(torch.full_like(query, b), query, targets.boxes[b][objects], targets.labels[b][objects])
            )
        all_boxes.append(torch.cat(runs))
    return torch.stack(all_boxes), Match.cat(matches)


def one_run(boxes: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """(slots, 4) noised boxes, positives first, and the object (p,) behind each positive."""
    n, device = len(boxes), boxes.device
    if n == 0:
        size = torch.rand(slots, 2, device=device) * 0.5 + 0.02
        return torch.cat([torch.rand(slots, 2, device=device), size], dim=1), torch.zeros(
            0, dtype=torch.int64, device=device
        )
    order = torch.randperm(n, device=device)
    objects = order[torch.arange(slots, device=device) % n]
    positives = min(n, slots)
    sign = torch.randint(0, 2, (slots, 2), device=device) * 2 - 1
    shift = torch.rand(slots, 2, device=device)
    near, far = shift * NEAR / 2, NEAR + shift * (FAR - NEAR)
    positive = (torch.arange(slots, device=device) < positives)[:, None]
    scale = 1 + (torch.rand(slots, 2, device=device) * 2 - 1) * NEAR
    centre = boxes[objects, :2] + sign * torch.where(positive, near, far) * boxes[objects, 2:]
    return torch.cat([centre, boxes[objects, 2:] * scale], dim=1), objects[:positives]
