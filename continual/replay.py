"""Replay: a few images of every old task, with their annotations and old outputs, among those of the new one.

Sources: experience replay, arXiv 1902.10486; outputs stored beside the images, arXiv 2004.07211 (Dark Experience
Replay). The buffer is drawn from without regard to its size, so that one smaller than a batch replays as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.base import Losses, Remedy, Stage, Step
from continual.teacher_remedy import divergence, object_distance
from models.head import READ, Outputs
from models.onehead import OneHead
from models.targets import VOID, Targets

MOST = 10
"""Images a task that the assignment allows."""


@dataclass
class Exemplar:
    """A stored image uint8 (3, S, S) with its annotation, and the network's outputs right after the image's own stage.

    outputs: half-precision outputs by name, for the image and for its mirror image; empty if nothing was stored.
    """

    image: Tensor
    targets: Targets
    outputs: list[dict[str, Tensor]]

    @property
    def task(self) -> str:
        """The task the image is annotated for."""
        return self.targets.task


class Replay(Remedy):
    """Keeps `size` images of each finished task and adds `per_step` of them, mirrored or not, to each step.

    Several processes share those of a step. weight: of the distance to the stored outputs; vary: show each stored image
    augmented anew, of which no outputs are stored.
    """

    def __init__(self, size: int, per_step: int, weight: float, vary: bool) -> None:
        if not 1 <= size <= MOST:
            raise ValueError(
                f"continual.replay is {size}: a buffer holds 1 to {MOST} images a task; set continual.replay_sets to "
                "draw from whole sets"
            )
        if not 1 <= per_step <= MOST:
            raise ValueError(
                f"continual.replay_step is {per_step}: show 1 to {MOST} a step, or set continual.replay to 0"
            )
        self.size, self.per_step, self.weight, self.vary = size, per_step, weight, vary
        self.buffer: list[Exemplar] = []
        self.stage: Stage | None = None
        self.shown: list[tuple[int, Exemplar, bool]] = []

    def before_stage(self, stage: Stage) -> None:
        """Replay from the second stage on."""
        self.stage = stage if stage.old else None

    def before_step(self, step: Step) -> None:
        """Append stored images and their annotations to the batch."""
        if self.stage is None or not self.buffer:
            return
        count = self.stage.share(min(self.per_step, len(self.buffer)))
        chosen = [self.buffer[k] for k in torch.randperm(len(self.buffer))[:count].tolist()]
        if self.vary:
            pairs = [self.stage.vary(exemplar.image / 255, exemplar.targets) for exemplar in chosen]
        else:
            turned = (torch.rand(len(chosen)) < 0.5).tolist()
            self.shown = [(len(step.images) + i, k, t) for i, (k, t) in enumerate(zip(chosen, turned))]
            pairs = [mirrored(k.image / 255, k.targets) if t else (k.image / 255, k.targets) for _, k, t in self.shown]
        step.append(pairs)

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Terms "replay_seg", "replay_det", "replay_cls": mean distance to the stored outputs of the shown images."""
        losses: dict[str, list[Tensor]] = {}
        for row, exemplar, turned in self.shown if self.stage and self.weight else ():
            if exemplar.outputs:
                stored = {k: v.to(step.images.device) for k, v in exemplar.outputs[turned].items()}
                losses.setdefault(f"replay_{exemplar.task}", []).append(distance(exemplar.task, outputs, row, stored))
        return {name: self.weight * torch.stack(values).sum() / len(self.shown) for name, values in losses.items()}

    def after_stage(self, stage: Stage) -> None:
        """Keep images of the stage's tasks that together show as many classes as possible."""
        everything = stage.examples()
        shown = [(t.task, classes_of(t)) for _, t in everything]
        for task in stage.tasks:
            positions = [i for i, (of, _) in enumerate(shown) if of == task]
            for i in cover([shown[p][1] for p in positions], self.size):
                image, targets = everything[positions[i]]
                views = [image, image.flip(-1)] if stage.model is not None and not self.vary else []
                stored = [stored_outputs(stage.model, task, view) for view in views] if stage.model is not None else []
                self.buffer.append(Exemplar((image * 255).round().to(torch.uint8), targets, stored))

    def state_dict(self) -> dict[str, Any]:
        """The stored images, annotations and outputs as plain tensors."""
        return {"buffer": [(k.image, vars(k.targets), k.outputs) for k in self.buffer]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the stored images."""
        self.buffer = [Exemplar(image, Targets(**t), stored) for image, t, stored in state["buffer"]]


@torch.no_grad()
def stored_outputs(model: OneHead, task: str, image: Tensor) -> dict[str, Tensor]:
    """A network's outputs for an image (3, S, S) that the scores of a task read, half precision, on the CPU."""
    was, _ = model.training, model.eval()
    outputs: Outputs = model(image[None].to(model.mean.device))
    model.train(was)
    source = outputs["dense"] if task == "det" else outputs
    return {name: source[name][0].half().cpu() for name in READ[task]}


def distance(task: str, outputs: Outputs, row: int, stored: dict[str, Tensor]) -> Tensor:
    """How far the outputs for image `row` of a batch are from stored ones."""
    if task == "det":
        own = {k: outputs["dense"][k][row][None] for k in READ["det"]}
        return object_distance(own, {k: stored[k][None].float() for k in READ["det"]})
    (name,) = READ[task]
    return divergence(outputs[name][row], stored[name], dim=0).mean()


def classes_of(targets: Targets) -> set[int]:
    """Classes that a single image shows."""
    values = torch.cat([*targets.labels, targets.masks.unique(), targets.classes])
    return {int(v) for v in values if v not in (-1, VOID)}


def cover(classes: list[set[int]], size: int) -> list[int]:
    """Greedy choice of up to `size` images by what each shows: the next one shows most of what was shown least so far.

    Returns positions.
    """
    left = list(range(len(classes)))
    chosen: list[int] = []
    counts: dict[int, int] = {}
    while left and len(chosen) < size:
        best = max(left, key=lambda i: sum(1 / (1 + counts.get(c, 0)) ** 2 for c in classes[i]))
        left.remove(best)
        chosen.append(best)
        for c in classes[best]:
            counts[c] = counts.get(c, 0) + 1
    return chosen


def mirrored(image: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """The left-right mirror image with its annotation."""
    boxes = [torch.cat([1 - b[:, :1], b[:, 1:]], dim=1) for b in targets.boxes]
    return image.flip(-1), Targets(boxes, targets.labels, targets.has_boxes, targets.masks.flip(-1), targets.classes)
