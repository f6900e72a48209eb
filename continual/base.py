"""The protocol of a remedy against forgetting.

A remedy is one file with one class; to add one, write it beside `l2sp.py`, give it a strength in
`continual/config.py` and name it in `continual/__init__.py`.
Hooks run in this order: before_stage, (before_step, penalty) for every step, after_training, after_stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.head import Outputs, Queries
from models.onehead import OneHead
from models.pretrained_backbone import PretrainedBackbone
from models.targets import Targets

TASK_SPECIFIC = ("head.class_queries", "head.projection.weight", "head.projection.bias")
"""Parameters of which parts belong to single tasks."""

Losses = dict[str, Tensor]
Examples = Sequence[tuple[Tensor, Targets]]


@dataclass
class Stage:
    """What a remedy may know about the stage that begins or ends.

    tasks: learnt in this stage; old: learnt before; start: the weights the stage starts from, in eval mode and without
    gradients (averaged weights of the previous stage), None in the first stage; examples: gives this stage's training
    images, float32 (3, S, S) in 0..1, without augmentation, each with its annotation as a batch of one;
    model: the network in training, and in `after_training` and `after_stage` the averaged weights that the stage ends
    with; loss: the training loss of a network on images (B, 3, S, S), None where none of them is annotated;
    pretrained: the backbone that the run began with, in eval mode and without gradients, if a remedy needs it and
    it was not random; vary: augments an image and its annotation as training images are; old_examples: the training
    images of an old task, augmented anew each time one is read, masks with the boxes that they give; expert: a network
    in eval mode and without gradients that has learnt a task before, if the configuration names one; share: how many
    of a step's images this process shows, where several processes share the step; mask_class: int64 (C_det,), for each
    class of boxes the class of masks of the same name, K (the number of mask classes) where there is none.
    """

    tasks: tuple[str, ...]
    old: tuple[str, ...]
    start: OneHead | None
    examples: Callable[[], Examples]
    model: OneHead | None = None
    loss: Callable[[OneHead, Tensor, Targets], Tensor | None] = lambda *_: None
    pretrained: PretrainedBackbone | None = None
    vary: Callable[[Tensor, Targets], tuple[Tensor, Targets]] = lambda *example: example
    old_examples: Callable[[str], Examples] = lambda _: []
    expert: Callable[[str], OneHead | None] = lambda _: None
    share: Callable[[int], int] = lambda count: count
    mask_class: Tensor | None = None


@dataclass
class Step:
    """One training step as the remedies see and change it before the forward pass.

    images: float32 (B, 3, S, S) in 0..1; targets: their annotations; queries: object queries that the student shall
    use instead of its own selection; teacher_outputs: those of the teacher for the images, None until a remedy queries
    it.
    """

    images: Tensor
    targets: Targets
    queries: Queries | None = None
    teacher_outputs: Outputs | None = None

    def append(self, examples: Examples) -> None:
        """Add images (3, S, S), none or more, each with its annotation as a batch of one, to the end of the batch."""
        if not examples:
            return
        images = torch.stack([image for image, _ in examples]).to(self.images)
        self.add(images, Targets.cat([targets for _, targets in examples]).to(images.device))

    def add(self, images: Tensor, targets: Targets) -> None:
        """Add images (B, 3, S, S) and their annotations to the end of the batch, which stays in channels-last order."""
        self.images = torch.cat([self.images, images]).contiguous(memory_format=torch.channels_last)
        self.targets = Targets.cat([self.targets, targets])

    @torch.no_grad()
    def query_teacher(self, stage: Stage) -> Outputs:
        """The outputs of the stage's start, computed once a step; the student follows its selection of queries.

        Query i of two free selections would be two things, so where detection is old, both decode the teacher's.
        """
        if self.teacher_outputs is None:
            assert stage.start is not None
            self.teacher_outputs = stage.start(self.images)
            if "det" in stage.old:
                self.queries = self.teacher_outputs["queries"]
        return self.teacher_outputs


class Remedy:
    """Does nothing; each remedy overrides what it needs."""

    def before_stage(self, stage: Stage) -> None:
        """Called once, before the first step of a stage (again after a resume)."""

    def before_step(self, step: Step) -> None:
        """Called before the forward pass; may add images and choose queries."""

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Named loss terms, already weighted; empty while there is nothing to remember."""
        return {}

    def after_training(self, stage: Stage) -> None:
        """Called after the last step, before the last evaluation; may change `stage.model`, the weights to end with."""

    def after_stage(self, stage: Stage) -> None:
        """Called when a stage has ended: collect what later stages need.

        Called late, at the start of the next stage, if the remedy was switched on only then.
        """

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def own_weights(model: OneHead, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Masks, by name of the parameter, of the weights that serve the given tasks alone; all others are shared.

    These are rows of the projection, and for segmentation the class queries.
    """
    head = model.head
    blocks = {"seg": ("present", "mask"), "det": ("box", "conf", "det"), "cls": ("cls",)}
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters() if n in TASK_SPECIFIC}
    for task in tasks:
        for name in blocks[task]:
            masks["head.projection.weight"][head.block(name)] = True
            masks["head.projection.bias"][head.block(name)] = True
    if "seg" in tasks:
        masks["head.class_queries"][:] = True
    return masks
