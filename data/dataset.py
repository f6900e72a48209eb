"""A `TaskSet` as a torch dataset: decoded once, kept in memory as uint8, augmented on tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data.composing import mosaic, paste
from data.images import read_image, read_mask
from data.mask_boxes import mask_boxes
from data.pixels import to_tensor
from data.transforms import Augment, Picture, eval_transform, make_boxes, resize, train_transform
from data.types import MAX_BOXES, Sample, TaskSet


def sample_generator(seed: int, epoch: int, index: int) -> Generator:
    """Return a generator seeded from the three numbers alone: the same in any process, after any resume."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class TaskDataset(Dataset[Sample]):
    """The samples of one split of one task.

    size: side S of the square samples; augment: None for exactly what evaluation sees; seed: of the
    augmentation; cache_side: longest side, in pixels, of what is kept to augment (default 1.5 x size);
    box_labels: class of a mask -> label of the boxes that its regions give; empty for masks alone.
    Crowd boxes and boxes of unknown classes are left out. Reading raises `DataError` for a broken file.
    """

    def __init__(
        self,
        task_set: TaskSet,
        size: int,
        augment: Augment | None,
        seed: int = 0,
        cache_side: int | None = None,
        box_labels: Mapping[int, int] | None = None,
    ) -> None:
        self.task_set = task_set
        self.size = size
        self.seed = seed
        self.cache_side = cache_side or round(1.5 * size)
        self.augment = augment
        self.box_labels = box_labels or {}
        self._evaluate = eval_transform(size)
        self._vary = train_transform(task_set.task, size, augment or Augment())
        self._pictures: list[Picture | None] = [None] * len(task_set.records)
        # Shared memory, so that workers that live longer than an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`; a pure function of the files, the seed, the epoch and the index."""
        picture = self._picture(index)
        if self.augment is None:
            return self._evaluate(picture)
        generator = sample_generator(self.seed, int(self._epoch), index)
        sample, task = self._vary(picture, generator), self.task_set.task
        if task != "cls" and torch.rand((), generator=generator) < self.augment.mosaic:
            sample = mosaic([sample, *self._others(3, generator)], generator)
        if task == "seg" and torch.rand((), generator=generator) < self.augment.paste:
            sample = paste(sample, *self._others(1, generator))
        return sample

    def _others(self, count: int, generator: Generator) -> list[Sample]:
        """Any other samples, varied."""
        chosen = torch.randint(len(self), (count,), generator=generator).tolist()
        return [self._vary(self._picture(i), generator) for i in chosen]

    def _picture(self, index: int) -> Picture:
        """Image `index` with its annotation, decoded on first use."""
        picture = self._pictures[index]
        if picture is None:
            picture = self._pictures[index] = self._load(index)
        return picture

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations come next; also seen by running workers."""
        self._epoch.fill_(epoch)

    def _load(self, index: int) -> Picture:
        """Decode one image and its annotation, shrunk to what is kept."""
        record = self.task_set.records[index]
        image = tv_tensors.Image(to_tensor(read_image(record.image)))
        size = (int(image.shape[-2]), int(image.shape[-1]))
        picture = Picture(image, index, label=record.label)
        if self.task_set.task == "det":
            usable = ~record.crowd & (record.labels < len(self.task_set.classes))
            boxes, labels = usable_boxes(record.boxes[usable], record.labels[usable], size)
            picture = replace(picture, boxes=boxes, labels=labels)
        if record.mask is not None:
            classes = read_mask(record.mask, len(self.task_set.classes), (size[1], size[0]), record.coding)
            picture = replace(picture, mask=tv_tensors.Mask(torch.from_numpy(classes)))
            if self.box_labels:
                boxes, labels = usable_boxes(*mask_boxes(classes, self.box_labels), size)
                picture = replace(picture, boxes=boxes, labels=labels)
        if self.augment is None:
            return resize(picture, (self.size, self.size))
        shrink = min(1.0, self.cache_side / max(size))
        return resize(picture, (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))))


def usable_boxes(boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[tv_tensors.BoundingBoxes, Tensor]:
    """Return boxes x1 y1 x2 y2 (n, 4) clipped to the image, the largest of very many, and labels; empty ones go."""
    clipped = F.clamp_bounding_boxes(make_boxes(boxes, size)).as_subclass(Tensor)
    usable = (clipped[:, 2:] > clipped[:, :2]).all(1)
    if int(usable.sum()) > MAX_BOXES:
        area = (clipped[:, 2:] - clipped[:, :2]).prod(1).where(usable, 0)
        usable = torch.zeros_like(usable).index_fill(0, area.topk(MAX_BOXES).indices, True)
    return make_boxes(clipped[usable], size), labels[usable]
