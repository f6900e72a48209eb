"""Images that remedies read: those of a set one by one, each with its annotation, and photographs without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from data.dataset import TaskDataset
from data.photos import mini_names, read_photos
from data.transforms import Augment
from data.types import TaskSet
from data.views import plain_views
from engine.settings.config import PretrainConfig
from engine.training.batches import collate
from models.targets import Targets

SCENE = 0.3
"""Smallest share of a photograph that a view shows, the largest being the whole."""


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


class PhotographViews:
    """Photographs of stage 0, varied anew each time; the numbers come from torch's global generator."""

    def __init__(self, config: PretrainConfig, size: int, device: torch.device) -> None:
        self.images = read_photos(config.sources, config.side, without=mini_names()).to(device)
        self.size, self.view = size, replace(config.view, area=SCENE)

    def __call__(self, count: int) -> Tensor:
        """Views float32 (B, 3, S, S) in 0..1, larger crops than stage 0's: boxes and masks need a scene."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return plain_views(self.images, count, self.size, self.view, generator)


class AugmentedImages(Sequence[tuple[Tensor, Targets]]):
    """Images of a set, augmented anew each time one is read; the numbers come from torch's global generator."""

    def __init__(self, task_set: TaskSet, size: int, augment: Augment) -> None:
        self.images = TaskDataset(task_set, size, augment)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Targets]:  # type: ignore[override]
        """Image float32 (3, S, S) in 0..1 and its annotation."""
        self.images.set_epoch(int(torch.randint(2**62, ())))
        images, targets = collate([self.images[index]])
        return images[0], targets
