"""Replay: a few images of every old task, with their annotations, among those of the new one.

Source: experience replay as in arXiv 1902.10486. The buffer holds at most 10 images a task and a step shows fewer, so
the loop over it never depends on a batch filling up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from continual.base import Remedy, Stage, Step
from models.targets import VOID, Targets

MOST = 10
"""Images a task that the assignment lets a buffer hold."""


class Replay(Remedy):
    """Keeps `size` images of each finished task and adds `per_step` of them, mirrored or not, to each step."""

    def __init__(self, size: int, per_step: int) -> None:
        if not 0 < size <= MOST:
            raise ValueError(f"continual.replay is {size}: a buffer holds 1 to {MOST} images a task")
        if per_step < 1:
            raise ValueError(f"continual.replay_step is {per_step}: show at least 1, or set continual.replay to 0")
        self.size, self.per_step = size, per_step
        self.buffer: list[tuple[Tensor, Targets]] = []
        self.active = False

    def before_stage(self, stage: Stage) -> None:
        """Replay from the second stage on; raise ValueError if nothing is kept of an old task."""
        missing = set(stage.old) - {annotated(t) for _, t in self.buffer}
        if missing:
            raise ValueError(
                f"replay kept no image of {', '.join(sorted(missing))}: train that stage with continual.replay above 0 "
                "too, or set it to 0"
            )
        self.active = bool(stage.old)

    def before_step(self, step: Step) -> None:
        """Append kept images and their annotations to the batch."""
        if not self.active:
            return
        chosen = torch.randperm(len(self.buffer))[: self.per_step].tolist()
        kept = [mirrored(*self.buffer[i]) if torch.rand(()) < 0.5 else self.buffer[i] for i in chosen]
        images = torch.stack([image for image, _ in kept]).to(step.images.device)
        step.images = torch.cat([step.images, images.to(step.images.dtype) / 255])
        step.targets = Targets.cat([step.targets, *(t.to(step.images.device) for _, t in kept)])

    def after_stage(self, stage: Stage) -> None:
        """Keep images of the stage's tasks that together show as many classes as possible."""
        everything = stage.examples()
        for task in stage.tasks:
            examples = [(image, t) for image, t in everything if annotated(t) == task]
            self.buffer += [((image * 255).round().to(torch.uint8), t) for image, t in cover(examples, self.size)]

    def state_dict(self) -> dict[str, Any]:
        """The kept images and annotations as plain tensors."""
        return {"buffer": [(image, vars(t)) for image, t in self.buffer]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the kept images."""
        self.buffer = [(image, Targets(**t)) for image, t in state["buffer"]]


def annotated(targets: Targets) -> str:
    """The task that a single image is annotated for."""
    if bool(targets.has_boxes[0]):
        return "det"
    return "cls" if int(targets.classes[0]) >= 0 else "seg"


def classes_of(targets: Targets) -> set[int]:
    """Classes that a single image shows."""
    values = torch.cat([*targets.labels, targets.masks.unique(), targets.classes])
    return {int(v) for v in values if v not in (-1, VOID)}


def cover(examples: list[tuple[Tensor, Targets]], size: int) -> list[tuple[Tensor, Targets]]:
    """Greedy choice of `size` examples: each next one shows most of the classes shown least so far."""
    left = list(examples)
    chosen: list[tuple[Tensor, Targets]] = []
    seen: dict[int, int] = {}
    while left and len(chosen) < size:
        best = max(range(len(left)), key=lambda i: sum(1 / (1 + seen.get(c, 0)) ** 2 for c in classes_of(left[i][1])))
        chosen.append(left.pop(best))
        for c in classes_of(chosen[-1][1]):
            seen[c] = seen.get(c, 0) + 1
    return chosen


def mirrored(image: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """The left-right mirror image with its annotation."""
    boxes = [torch.cat([1 - b[:, :1], b[:, 1:]], dim=1) for b in targets.boxes]
    return image.flip(-1), Targets(boxes, targets.labels, targets.has_boxes, targets.masks.flip(-1), targets.classes)
