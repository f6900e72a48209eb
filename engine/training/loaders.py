"""The loaders of a stage: which images it shows, in which order, and how they are augmented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from data.dataset import TaskDataset
from data.transforms import Augment
from data.types import Sample, TaskSet
from engine.settings.config import Config
from engine.training.batches import Batch, EpochBatches, collate, stable_seed

PLAIN = Augment(scale=(1.0, 1.0), aspect=1.0, crop=1.0, color=0.0, grey=0.0, mosaic=0.0, paste=0.0)
"""What is left of augmentation at a stage's end: mirroring."""


def stage_loaders(
    sets: Sequence[TaskSet], stage: str, config: Config, overfit: bool, device: torch.device, rank: int, world: int
) -> dict[str, DataLoader[Batch]]:
    """Loaders over the images of one or several tasks, for process `rank` of `world`.

    "augmented", and "plain" for the stage's end, if it has one; `overfit`: neither is augmented.
    """
    kinds = {"augmented": (config.data.augment, None), "plain": (PLAIN, config.data.size)}
    if not config.data.plain_end:
        del kinds["plain"]
    found = {}
    for name, (augment, side) in kinds.items():
        seed = stable_seed(config.seed, name)
        datasets = [TaskDataset(s, config.data.size, None if overfit else augment, seed, side) for s in sets]
        count, seed = sum(map(len, datasets)), stable_seed(config.seed, stage)
        batches = EpochBatches(count, config.optim.batch, seed, rank, world)
        workers = config.data.workers if config.data.workers is not None else 2 * (device.type == "cuda")
        found[name] = make_loader(datasets, batches, workers)
    return found


def make_loader(datasets: Sequence[TaskDataset], batches: EpochBatches, workers: int) -> DataLoader[Batch]:
    """A loader over the images of one or several tasks."""
    return DataLoader(
        cast(Dataset[Batch], ConcatDataset(cast(list[Dataset[Sample]], list(datasets)))),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def set_epoch(loader: DataLoader[Batch], epoch: int) -> None:
    """Choose the order of images and the augmentations of an epoch."""
    cast(EpochBatches, loader.batch_sampler).epoch = epoch
    for dataset in cast(ConcatDataset[Sample], loader.dataset).datasets:
        cast(TaskDataset, dataset).set_epoch(epoch)
