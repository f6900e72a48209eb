"""What the report of a run shows of a stage beyond its row: every class's scores, and the same eight pictures.

It lies beside the stage's weights as <stage>.json, so that a chain that was interrupted still shows every stage.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.images import read_image, read_mask
from data.types import VOID, Record, Task, TaskSet
from engine.evaluation.draw import colour_of
from engine.evaluation.evaluate import Evaluation, Model
from engine.evaluation.metrics import predicted_mask
from engine.evaluation.prediction import LEAST_SHARE, network_input
from models.boxes import to_xyxy
from models.postprocess import detections

PICTURES = 8
"""Of all sets together."""
SIDE = 360
"""Longest side of a picture in pixels."""
Size = tuple[int, int]


def stage_record(evaluation: Evaluation, task_sets: Mapping[Task, TaskSet], model: Model) -> dict[str, Any]:
    """Plain values: the sets, the classes' scores by task, pictures as annotated and predicted, the boxes' threshold.

    model: the stage's, in eval mode.
    """
    return {
        "sets": {task: {"split": s.split, "images": len(s.records)} for task, s in task_sets.items()},
        "classes": {task: existing(tally.per_class()) for task, tally in evaluation.per_image.items()},
        "threshold": model.threshold,
        "pictures": [picture(task_sets[task], index, model) for task, index in chosen(task_sets)],
    }


def existing(classes: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Scores of classes, undefined ones None."""
    return {
        name: {k: None if math.isnan(v) else round(v, 5) for k, v in scores.items()} for name, scores in classes.items()
    }


def chosen(task_sets: Mapping[Task, TaskSet], count: int = PICTURES) -> list[tuple[Task, int]]:
    """Task and position of `count` images: as many of each set as of the others, evenly spaced in their order."""
    found: list[tuple[Task, int]] = []
    for i, (task, task_set) in enumerate(task_sets.items()):
        share = count // len(task_sets) + (i < count % len(task_sets))
        size = len(task_set.records)
        found += [(task, (2 * k + 1) * size // (2 * share)) for k in range(share)]
    return list(dict.fromkeys(found))  # a small set has fewer


def picture(task_set: TaskSet, index: int, model: Model) -> dict[str, Any]:
    """One image at no more than SIDE pixels, as annotated for its task and as predicted for all tasks."""
    record = task_set.records[index]
    image = read_image(record.image)
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return {
        "task": task_set.task,
        "file": record.image.name,
        "size": list(small.size),
        "image": data_uri(small, "JPEG", quality=80),
        "annotated": annotated(task_set, record, image.size, small.size),
        "predicted": predicted(model, image, small.size),
    }


def annotated(task_set: TaskSet, record: Record, size: Size, small: Size) -> dict[str, Any]:
    """The annotation of a picture; crowds and void pixels are left out."""
    names = task_set.classes + task_set.unknown
    found: dict[str, Any] = {}
    if task_set.task == "det":
        corners = record.boxes / record.boxes.new_tensor(size * 2)
        kept = ~record.crowd
        found["boxes"] = boxes(corners[kept], record.labels[kept], None, names, small)
    if record.mask is not None:
        mask = read_mask(record.mask, len(names), coding=record.coding)
        indices = np.asarray(Image.fromarray(np.where(mask == VOID, 0, mask)).resize(small, Image.Resampling.NEAREST))
        found |= regions(indices, names)
    if record.label is not None:
        found["label"] = names[record.label]
    return found


@torch.no_grad()
def predicted(model: Model, image: Image.Image, small: Size) -> dict[str, Any]:
    """The predictions for a picture; tasks without classes or outputs are left out."""
    device = getattr(model, "mean", torch.zeros(())).device
    outputs = model(network_input(image, model.input_size).to(device))
    known = {task: names for task, names in model.classes.items() if names}
    found: dict[str, Any] = {}
    if "det" in known and "pred_boxes" in outputs:
        best = {name: values.cpu() for name, values in detections(outputs)[0].items()}
        sure = best["scores"] >= model.threshold
        corners = to_xyxy(best["boxes"])[sure]
        found["boxes"] = boxes(corners, best["labels"][sure], best["scores"][sure], known["det"], small)
    if "seg" in known and "pred_masks" in outputs:
        mask = predicted_mask(outputs["pred_masks"][0].float().cpu(), small[::-1])
        found |= regions(mask.numpy(), known["seg"])
    if "cls" in known and "pred_class" in outputs:
        chances = outputs["pred_class"][0].float().softmax(0)
        found |= {"label": known["cls"][int(chances.argmax())], "probability": round(float(chances.max()), 3)}
    return found


def boxes(
    corners: Tensor, labels: Tensor, scores: Tensor | None, names: Sequence[str], small: Size
) -> list[dict[str, Any]]:
    """Boxes for drawing, surest last: corners (n, 4) x1 y1 x2 y2 as fractions -> x, y, width, height in pixels."""
    x1, y1, x2, y2 = (corners.clamp(0, 1) * corners.new_tensor(small * 2)).unbind(1)
    rows = torch.stack([x1, y1, x2 - x1, y2 - y1], 1).round(decimals=1).tolist()
    found = [{"name": names[k], "xywh": xywh, "colour": hexadecimal(1 + k)} for k, xywh in zip(labels.tolist(), rows)]
    for box, score in zip(found, [] if scores is None else scores.tolist()):
        box["score"] = round(score, 2)
    return found[::-1]


def regions(mask: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """A mask (H, W) as a picture whose background is clear, and its regions, the largest first."""
    colours = np.array([(*colour_of(i), 255 if i else 0) for i in range(int(mask.max()) + 1)], dtype=np.uint8)
    shares = np.bincount(mask.ravel()) / mask.size
    order = [int(i) for i in shares.argsort()[::-1] if i and shares[i] >= LEAST_SHARE]
    named = [{"name": names[i], "share": round(float(shares[i]), 3), "colour": hexadecimal(i)} for i in order]
    return {"mask": data_uri(Image.fromarray(colours[mask]), "PNG"), "regions": named}


def hexadecimal(index: int) -> str:
    """The colour of a class as pages write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour_of(index))


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """A picture as an address that holds the picture itself."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
