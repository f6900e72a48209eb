"""COCO average precision, mean IoU and Top-1, kept per image so that any set of images can be scored again.

A tally holds what a model did on every image of one set. `scores()` condenses it to the set's metrics,
`scores(images)` to those of a resampled set, as a paired bootstrap over images asks for. All values are
fractions of 1; a value that does not exist (no ground truth of that kind) is NaN.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

from data.types import Record, Task

Scores: TypeAlias = dict[str, float]
Images: TypeAlias = Sequence[int] | NDArray[np.int64]
Entries: TypeAlias = list[dict[str, Any]]

SCORE_NAMES: dict[Task, tuple[str, ...]] = {
    "det": ("mAP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR100", "mAP_known"),
    "seg": ("mIoU", "mIoU_foreground", "pixel_acc"),
    "cls": ("Top-1", "Top-1_known"),
}
"""The keys of `scores()`, by task; the first is the headline metric."""
HEADLINE: dict[Task, str] = {"seg": "mIoU", "det": "mAP", "cls": "Top-1"}
"""The metric of each task that must not drop, in the order of the stages."""
MAX_DETECTIONS = 100


class Tally(Protocol):
    """What a model did on the images of one set."""

    def __len__(self) -> int:
        """Number of images."""

    def scores(self, images: Images | None = None) -> Scores:
        """Metrics over `images` (positions in the set, a repeat is a further image), by default over all."""

    def per_class(self) -> dict[str, Scores]:
        """Metrics of each class, known ones first."""


# --- detection --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detections:
    """Detections in one image: boxes (k, 4) x1 y1 x2 y2 in its own pixels, scores (k,), labels int64 (k,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DetectionTally:
    """Ground truth and detections of a set, image by image; they are matched once, on first use.

    Labels of `records` from `len(classes)` on mean `unknown`. AP is that of the official pycocotools (Lin et
    al., Microsoft COCO, 2014): IoU .50:.05:.95, 101 recall points, 100 detections an image, crowds ignored.
    """

    records: tuple[Record, ...]
    detections: tuple[Detections, ...]
    classes: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.records) != len(self.detections):
            raise ValueError(f"{len(self.records)} images but detections of {len(self.detections)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def scores(self, images: Images | None = None) -> Scores:
        """COCO AP and AR over `images`; unknown categories count 0 in all but `mAP_known`."""
        result = self._accumulated(images)
        precision = result["precision"]  # (IoU threshold, recall point, category, size range, 1)
        return {
            "mAP": _mean(precision[:, :, :, 0]),
            "AP50": _mean(precision[0, :, :, 0]),
            "AP75": _mean(precision[5, :, :, 0]),
            "AP_S": _mean(precision[:, :, :, 1]),
            "AP_M": _mean(precision[:, :, :, 2]),
            "AP_L": _mean(precision[:, :, :, 3]),
            "AR100": _mean(result["recall"][:, :, 0]),
            "mAP_known": _mean(precision[:, :, : len(self.classes), 0]),
        }

    def per_class(self) -> dict[str, Scores]:
        """AP, AP50 and the number of non-crowd boxes of every category."""
        precision = self._accumulated(None)["precision"]
        labels = torch.cat([r.labels[~r.crowd] for r in self.records] or [torch.zeros(0, dtype=torch.int64)])
        return {
            name: {
                "AP": _mean(precision[:, :, k, 0]),
                "AP50": _mean(precision[0, :, k, 0]),
                "boxes": float((labels == k).sum()),
            }
            for k, name in enumerate(self.classes + self.unknown)
        }

    @cached_property
    def _matched(self) -> COCOeval:
        """The pycocotools evaluator, detections matched to boxes in every image; image id = position."""
        categories = [{"id": k, "name": name} for k, name in enumerate(self.classes + self.unknown)]
        images = [{"id": i} for i in range(len(self))]
        truth = [a for i, r in enumerate(self.records) for a in _truth_annotations(i, r)]
        found = [a for i, d in enumerate(self.detections) for a in _detection_annotations(i, d)]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOeval(_coco(images, categories, truth), _coco(images, categories, found), "bbox")
            evaluator.params.maxDets = [MAX_DETECTIONS]
            evaluator.evaluate()
        return evaluator

    def _accumulated(self, images: Images | None) -> dict[str, Any]:
        """Precision and recall tables of pycocotools; matches are per image, so `images` only picks them."""
        evaluator = copy.copy(self._matched)
        chosen = np.arange(len(self)) if images is None else np.asarray(images, dtype=np.int64)
        params = copy.copy(evaluator.params)
        params.imgIds = list(range(len(chosen)))
        evaluator.params = evaluator._paramsEval = params
        # `evalImgs` is flat: for every category and size range, one entry per image.
        rows = range(0, len(evaluator.evalImgs), max(1, len(self)))
        evaluator.evalImgs = [evaluator.evalImgs[row + i] for row in rows for i in chosen]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.accumulate()
        return dict(evaluator.eval)


def _coco(images: Entries, categories: Entries, annotations: Entries) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    # Annotation ids start at 1, because pycocotools takes a match with id 0 for no match.
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    coco.createIndex()
    return coco


def _truth_annotations(image: int, record: Record) -> Entries:
    fields = (record.boxes, record.labels, record.crowd, record.area)
    return [
        {"image_id": image, "category_id": k, "bbox": _xywh(box), "iscrowd": int(crowd), "area": area}
        for box, k, crowd, area in zip(*(field.tolist() for field in fields), strict=True)
    ]


def _detection_annotations(image: int, found: Detections) -> Entries:
    fields = (found.boxes, found.labels, found.scores)
    return [
        {"image_id": image, "category_id": k, "bbox": (b := _xywh(box)), "score": score, "area": b[2] * b[3]}
        for box, k, score in zip(*(field.tolist() for field in fields), strict=True)
    ]


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the entries that exist; COCO marks the others with -1."""
    existing = values[values > -1]
    return float(existing.mean()) if existing.size else float("nan")


# --- segmentation -----------------------------------------------------------------------------------------


def predicted_mask(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of every pixel, int64 `size` = (H, W): logits (C, h, w) upsampled bilinearly, then argmax."""
    # With the classes innermost in memory the argmax takes a third of the time.
    logits = logits[None].float().contiguous(memory_format=torch.channels_last)
    upsampled = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return upsampled[0].permute(1, 2, 0).argmax(-1)


def confusion_matrix(truth: Tensor, predicted: Tensor, num_classes: int, void: int | None = None) -> NDArray[np.int64]:
    """Counts int64 (num_classes, num_classes), rows truth, columns prediction; truth `void` does not count.

    Raises ValueError if the shapes differ or a truth label is neither below `num_classes` nor `void`.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {tuple(truth.shape)}, prediction {tuple(predicted.shape)}")
    counted = torch.ones_like(truth, dtype=torch.bool) if void is None else truth != void
    rows, columns = truth[counted].long(), predicted[counted].long()
    if rows.numel() and int(rows.max()) >= num_classes:
        raise ValueError(f"label {int(rows.max())} with {num_classes} classes")
    counts = torch.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).cpu().numpy()


@dataclass(frozen=True)
class SegmentationTally:
    """Pixel confusion of every image, int64 (n, K, K), K = classes + unknown, rows truth, void left out."""

    confusions: NDArray[np.int64]
    classes: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.confusions)

    def confusion(self, images: Images | None = None) -> NDArray[np.int64]:
        """One confusion matrix (K, K) over `images`, by default over all."""
        chosen = self.confusions if images is None else self.confusions[np.asarray(images, dtype=np.int64)]
        return np.asarray(chosen.sum(axis=0))

    def scores(self, images: Images | None = None) -> Scores:
        """Mean IoU over classes seen in truth or prediction, with and without class 0; pixel accuracy."""
        matrix = self.confusion(images)
        iou = _iou(matrix)
        return {
            "mIoU": _nanmean(iou),
            "mIoU_foreground": _nanmean(iou[1:]),
            "pixel_acc": _ratio(float(np.trace(matrix)), float(matrix.sum())),
        }

    def per_class(self) -> dict[str, Scores]:
        """IoU and accuracy (recall of pixels) of every class, and its share of the pixels."""
        matrix = self.confusion()
        iou, right, truth = _iou(matrix), np.diag(matrix), matrix.sum(axis=1)
        return {
            name: {
                "IoU": float(iou[k]),
                "accuracy": _ratio(float(right[k]), float(truth[k])),
                "pixels": _ratio(float(truth[k]), float(truth.sum())),
            }
            for k, name in enumerate(self.classes + self.unknown)
        }


def _iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class, float64 (K,); NaN where the union is empty."""
    intersection = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - intersection
    iou = np.full(len(matrix), np.nan)
    np.divide(intersection, union, out=iou, where=union > 0)
    return iou


def _nanmean(values: NDArray[np.float64]) -> float:
    existing = values[~np.isnan(values)]
    return float(existing.mean()) if existing.size else float("nan")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


# --- classification ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassificationTally:
    """True and predicted label of every image, int64 (n,); labels from `len(classes)` on mean `unknown`."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    classes: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def scores(self, images: Images | None = None) -> Scores:
        """Top-1 over `images`; images of unknown classes count as wrong, `Top-1_known` leaves them out."""
        chosen = slice(None) if images is None else np.asarray(images, dtype=np.int64)
        labels, predicted = self.labels[chosen], self.predicted[chosen]
        right, known = labels == predicted, labels < len(self.classes)
        return {
            "Top-1": _ratio(float(right.sum()), float(len(right))),
            "Top-1_known": _ratio(float(right[known].sum()), float(known.sum())),
        }

    def per_class(self) -> dict[str, Scores]:
        """Accuracy and number of images of every class."""
        matrix = self.confusion()
        return {
            name: {
                "accuracy": _ratio(float(matrix[k, k]), float(matrix[k].sum())),
                "images": float(matrix[k].sum()),
            }
            for k, name in enumerate(self.classes + self.unknown)
        }

    def confusion(self) -> NDArray[np.int64]:
        """Counts (K, K), rows truth, K = classes + unknown."""
        num_classes = len(self.classes) + len(self.unknown)
        return confusion_matrix(torch.as_tensor(self.labels), torch.as_tensor(self.predicted), num_classes)
