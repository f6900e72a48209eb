"""Run a model over the three sets and score it, during training and for the command line alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataset import TaskDataset
from data.images import image_size, read_mask
from data.types import VOID, Record, Task, TaskSet
from engine.evaluation.average_precision import MAX_DETECTIONS, Detections, DetectionTally
from engine.evaluation.metrics import (
    ClassificationTally,
    Scores,
    SegmentationTally,
    Tally,
    confusion_matrix,
    predicted_mask,
)
from engine.storage.errors import UserError
from models.boxes import to_xyxy
from models.head import READ
from models.postprocess import detections as best_detections

Batches: TypeAlias = Iterator[tuple[tuple[Record, ...], dict[str, Tensor]]]


class Model(Protocol):
    """What can be scored: `OneHead`, or another module that gives the outputs that are read under the same names."""

    classes: dict[str, tuple[str, ...]]
    input_size: int
    threshold: float

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """Outputs for images (B, 3, S, S) in 0..1."""

    def modules(self) -> Iterator[nn.Module]:
        """As in `torch.nn.Module`."""


@dataclass(frozen=True)
class Evaluation:
    """What a model did on every image of the sets it was run on, by task.

    `scores` are the flat results ("mAP", "mIoU", "Top-1", ...); `per_image[task].scores(images)` are those of
    a resampled set, and `per_image[task].per_class()` is the table of the classes.
    """

    per_image: dict[Task, Tally]

    @cached_property
    def scores(self) -> Scores:
        """The metrics of all tasks in one flat dictionary, fractions of 1, NaN where undefined."""
        return {name: value for tally in self.per_image.values() for name, value in tally.scores().items()}


class Evaluator:
    """Scores models on fixed sets, whose images are decoded once, at the network's input size, and kept.

    Every set goes through the model once, squashed to `size` x `size`; detections are scaled back to each
    file's own pixels, segmentation logits to each mask's own resolution, before they are compared.
    """

    def __init__(self, task_sets: Mapping[Task, TaskSet], size: int, batch_size: int = 8) -> None:
        self.task_sets = dict(task_sets)
        self.batch_size = batch_size
        self._datasets = {task: TaskDataset(s, size, augment=None) for task, s in self.task_sets.items()}

    def run(self, model: Model, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Evaluation:
        """Evaluate `model`, which must be on `device`; its training mode is left as found.

        dtype: of autocast (bfloat16, float16), None for full precision. Raises UserError if the model's
        classes are not those a set was read with.
        """
        total = sum(len(dataset) for dataset in self._datasets.values())
        per_image: dict[Task, Tally] = {}
        with _eval_mode(model), tqdm(total=total, unit="image", leave=False, disable=None) as bar:
            for task, task_set in self.task_sets.items():
                bar.set_description(f"evaluating {task}")
                _check_classes(model, task_set)
                batches = self._outputs(model, task, torch.device(device), dtype, bar)
                per_image[task] = _TALLY[task](task_set, batches)
        return Evaluation(per_image)

    def first_images(self, count: int) -> Iterator[tuple[Task, Tensor]]:
        """The first `count` images of every set, float32 (3, S, S) in 0..1, with their task."""
        for task, dataset in self._datasets.items():
            for i in range(min(count, len(dataset))):
                yield task, dataset[i].image

    def _outputs(self, model: Model, task: Task, device: torch.device, dtype: torch.dtype | None, bar: tqdm) -> Batches:
        """Yield the records of each batch and the model's outputs for them, float32 on the CPU."""
        dataset = self._datasets[task]
        for start in range(0, len(dataset), self.batch_size):
            records = self.task_sets[task].records[start : start + self.batch_size]
            images = torch.stack([dataset[start + i].image for i in range(len(records))]).to(device)
            # Not inference_mode: a tensor that a module caches here may be needed in training later.
            with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                outputs = model(images)
            yield records, {name: outputs[name].float().cpu() for name in READ[task]}
            bar.update(len(records))


def _tally_detections(task_set: TaskSet, batches: Batches) -> DetectionTally:
    found = []
    for records, outputs in batches:
        for record, best in zip(records, best_detections(outputs, top_k=MAX_DETECTIONS), strict=True):
            boxes = _pixels(best["boxes"], image_size(record.image))
            found.append(Detections(boxes, best["scores"], best["labels"]))
    return DetectionTally(task_set.records, tuple(found), task_set.classes, task_set.unknown)


def _tally_masks(task_set: TaskSet, batches: Batches) -> SegmentationTally:
    known, unknown = task_set.classes, task_set.unknown
    num_classes = len(known) + len(unknown)
    matrices = []
    for records, outputs in batches:
        for record, logits in zip(records, outputs["pred_masks"], strict=True):
            assert record.mask is not None
            truth = torch.from_numpy(read_mask(record.mask, num_classes, coding=record.coding))
            predicted = predicted_mask(logits, (truth.shape[0], truth.shape[1]))
            matrices.append(confusion_matrix(truth, predicted, num_classes, void=VOID))
    return SegmentationTally(np.stack(matrices), known, unknown)


def _tally_classes(task_set: TaskSet, batches: Batches) -> ClassificationTally:
    labels: list[int] = []
    predicted: list[int] = []
    for records, outputs in batches:
        labels += [record.label for record in records if record.label is not None]
        predicted += outputs["pred_class"].argmax(1).tolist()
    return ClassificationTally(np.array(labels), np.array(predicted), task_set.classes, task_set.unknown)


_TALLY: dict[Task, Callable[[TaskSet, Batches], Tally]] = {
    "det": _tally_detections,
    "seg": _tally_masks,
    "cls": _tally_classes,
}


def _pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (k, 4) cx cy w h as fractions -> x1 y1 x2 y2 in pixels of an image of `size` (width, height)."""
    return to_xyxy(boxes) * boxes.new_tensor(size * 2)


def _check_classes(model: Model, task_set: TaskSet) -> None:
    known = tuple(model.classes[task_set.task])
    if known != task_set.classes:
        raise UserError(
            f"the model's {task_set.task} classes are {', '.join(known)}, but the set was read with "
            f"{', '.join(task_set.classes)}: read the set with the model's classes"
        )


@contextmanager
def _eval_mode(model: Model) -> Iterator[None]:
    """Switch to eval mode, then give every module back its own mode (batch norm may be frozen on its own)."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
