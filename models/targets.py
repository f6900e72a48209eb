"""The one type that passes from the data to the criterion: what is known about a batch of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

VOID = 255
"""Mask value without a label."""
NO_CLASS = -1
"""Value of `Targets.classes` for an image without an image label."""


@dataclass
class Targets:
    """Annotations of B images. Any image may lack any of the three; what is missing costs no loss.

    boxes: B tensors float32 (n, 4), cx cy w h as fractions of the image; labels: B tensors int64 (n,);
    has_boxes: bool (B,), True where the boxes are annotated (an empty list then means "no objects");
    masks: int64 (B, H, W), 255 where unlabelled; classes: int64 (B,), -1 where unlabelled.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    has_boxes: Tensor
    masks: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def has_masks(self) -> Tensor:
        """Whether each mask has any label: bool (B,)."""
        return (self.masks != VOID).flatten(1).any(1)

    @property
    def task(self) -> Literal["seg", "det", "cls"]:
        """The task that a batch of one image is annotated for; its mask may give boxes, too."""
        if int(self.classes[0]) != NO_CLASS:
            return "cls"
        return "det" if bool(self.has_boxes[0]) and not bool(self.has_masks[0]) else "seg"

    def to(self, device: torch.device | str) -> Targets:
        """Return the same targets on `device`; boxes and labels of all images cross in one transfer each."""
        counts = [len(b) for b in self.boxes]
        return Targets(
            list(torch.cat(self.boxes).to(device, non_blocking=True).split(counts)),
            list(torch.cat(self.labels).to(device, non_blocking=True).split(counts)),
            self.has_boxes.to(device, non_blocking=True),
            self.masks.to(device, non_blocking=True),
            self.classes.to(device, non_blocking=True),
        )

    @staticmethod
    def cat(parts: list[Targets]) -> Targets:
        """Join batches of equal image size into one."""
        return Targets(
            [b for p in parts for b in p.boxes],
            [y for p in parts for y in p.labels],
            torch.cat([p.has_boxes for p in parts]),
            torch.cat([p.masks for p in parts]),
            torch.cat([p.classes for p in parts]),
        )
