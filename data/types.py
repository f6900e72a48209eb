"""What the data room hands out: `Record` (on disk), `TaskSet` (one split of one task), `Sample` (one training item)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Task = Literal["seg", "det", "cls"]
TASKS: tuple[Task, ...] = ("seg", "det", "cls")
Fold = Literal[0, 1, 2, 3, 4, 5]
"""Which sixth of a set is held back."""
VOID = 255
"""Mask value of pixels that count in no loss and no metric."""
MAX_BOXES = 1000
"""Most boxes of one image that are learnt from, the largest ones: the time and memory of matching grow with them."""


@dataclass(frozen=True)
class MaskCoding:
    """What a mask file holds: stored value -> class index, colour (red, green, blue) -> class index.

    Without `values` the value is the index, without `colours` those of Pascal VOC count; 255 is void in both,
    unless `values` or `colours` say otherwise. An index of 255 stands for void.
    """

    values: Mapping[int, int] | None = None
    colours: Mapping[tuple[int, int, int], int] | None = None


@dataclass(frozen=True)
class Record:
    """One image file and its annotation as found on disk; only the fields of its task are filled.

    boxes: float32 (n, 4), x1 y1 x2 y2 in pixels of the decoded image; labels: int64 (n,), indices into
    `TaskSet.classes` followed by `TaskSet.unknown`; crowd: bool (n,); area: float32 (n,), square pixels.
    """

    image: Path
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    crowd: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    area: Tensor = field(default_factory=lambda: torch.zeros(0))
    mask: Path | None = None
    coding: MaskCoding | None = None
    label: int | None = None


@dataclass(frozen=True)
class TaskSet:
    """One split of one task: its images, its classes, and what was noticed on the way.

    `unknown` lists categories that the files use and `classes` lacks; their labels start at `len(classes)`.
    """

    task: Task
    split: str
    layout: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image ready for the network.

    image: float32 (3, S, S) in 0..1; boxes: float32 (n, 4) cx cy w h as fractions of the image, labels: int64 (n,),
    both None unless the task is detection or the mask gives them; mask: int64 (S, S) with 255 void, None unless
    segmentation; label: int, None unless classification; index: position in `TaskSet.records`.
    """

    image: Tensor
    index: int
    boxes: Tensor | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    label: int | None = None
