"""COCO average precision by pycocotools, detections kept per image so that any set of images can be scored again."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from data.types import Record
from engine.evaluation.metrics import Images, Scores

Entries: TypeAlias = list[dict[str, Any]]

MAX_DETECTIONS = 100


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

    def hits(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Scores (n,) of the detections of known classes, surest first, and whether each one is right.

        Right: the first to overlap a box of its class by an IoU of .50. Detections of crowds do not count.
        """
        known = [e for e in self._matched.evalImgs if e and e["aRng"] == self._matched.params.areaRng[0]]
        known = [e for e in known if e["category_id"] < len(self.classes)]
        counted = [~np.asarray(e["dtIgnore"][0], dtype=bool) for e in known]
        scores = np.concatenate([np.zeros(0), *(np.asarray(e["dtScores"])[c] for e, c in zip(known, counted))])
        right = np.concatenate([np.zeros(0, bool), *(e["dtMatches"][0][c] > 0 for e, c in zip(known, counted))])
        order = np.argsort(-scores, kind="stable")
        return scores[order], right[order]

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
