"""From samples to batches: collation, and an order of images that depends on seed and epoch alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from data.transforms import Augment, to_picture, train_transform
from data.types import Sample
from engine.storage.errors import UserError
from models.targets import NO_CLASS, VOID, Targets

Batch = tuple[Tensor, Targets]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of any tasks to images (B, 3, S, S) and `Targets`."""
    images = torch.stack([s.image for s in samples])
    empty_box, empty_label = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    blank = torch.full(images.shape[-2:], VOID, dtype=torch.int64)
    return images, Targets(
        boxes=[empty_box if s.boxes is None else s.boxes for s in samples],
        labels=[empty_label if s.labels is None else s.labels for s in samples],
        has_boxes=torch.tensor([has_boxes(s) for s in samples]),
        masks=torch.stack([blank if s.mask is None else s.mask for s in samples]),
        classes=torch.tensor([NO_CLASS if s.label is None else s.label for s in samples]),
    )


def has_boxes(sample: Sample) -> bool:
    """Whether a sample's boxes are annotated; those of a mask that says nothing are not."""
    return sample.boxes is not None and (sample.mask is None or bool((sample.mask != VOID).any()))


def stable_seed(*parts: object) -> int:
    """A seed that depends on the given values alone, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def varied(image: Tensor, targets: Targets, augment: Augment) -> tuple[Tensor, Targets]:
    """Vary an image float32 (3, S, S) in 0..1 and its annotation, a batch of one, as the training of its task does.

    The numbers come from torch's global generator. Mosaics and pasting, which need other images, are left out.
    """
    task = targets.task
    sample = Sample(
        image,
        0,
        targets.boxes[0] if task == "det" else None,
        targets.labels[0] if task == "det" else None,
        targets.masks[0] if task == "seg" else None,
        int(targets.classes[0]) if task == "cls" else None,
    )
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    images, targets = collate([train_transform(task, image.shape[-1], augment)(to_picture(sample), generator)])
    return images[0], targets


def process_share(count: int, rank: int, world: int) -> int:
    """How many of a step's images process `rank` of `world` shows; all together show `count`."""
    return len(range(rank, count, world))


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches; process `rank` of `world` gets its share of every batch, so that all steps are global ones.

    A last batch smaller than the rest is dropped, unless it is the only one. Fewer images than processes are repeated:
    each process has one at least. Raises UserError for a batch of fewer images than processes.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch < world:
            raise UserError(f"optim.batch {batch} is shared by {world} processes: give {world} or more, one for each")
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.batch = max(min(batch, count), world)
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, self.count // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's indices of each batch of the epoch."""
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist() * math.ceil(self.batch / self.count)
        for start in range(0, len(self) * self.batch, self.batch):
            yield order[start + self.rank : start + self.batch : self.world]
