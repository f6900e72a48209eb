"""Training images one by one, as remedies read them: plain or augmented, each with its annotation as a batch of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from data.dataset import TaskDataset
from data.transforms import Augment
from data.types import TaskSet
from engine.training.batches import collate
from models.targets import Targets


class ExampleImages(Sequence[tuple[Tensor, Targets]]):
    """Images of one or several sets as evaluation sees them, decoded when they are read."""

    def __init__(self, task_sets: Sequence[TaskSet], size: int) -> None:
        self.images: Any = ConcatDataset([TaskDataset(s, size, None) for s in task_sets])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Targets]:  # type: ignore[override]
        """Image float32 (3, S, S) in 0..1 and its annotation."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        images, targets = collate([self.images[index]])
        return images[0], targets


class AugmentedImages(Sequence[tuple[Tensor, Targets]]):
    """Images of a set, augmented anew each time one is read; the numbers come from torch's global generator.

    box_labels: class of a mask -> label of the boxes that its regions give; empty for masks alone.
    """

    def __init__(
        self, task_set: TaskSet, size: int, augment: Augment, box_labels: Mapping[int, int] | None = None
    ) -> None:
        self.images = TaskDataset(task_set, size, augment, box_labels=box_labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Targets]:  # type: ignore[override]
        """Image float32 (3, S, S) in 0..1 and its annotation."""
        self.images.set_epoch(int(torch.randint(2**62, ())))
        images, targets = collate([self.images[index]])
        return images[0], targets
