"""Names of all scores; mean IoU and Top-1, kept per image so that any set of images can be scored again.

A tally holds what a model did on every image of one set. `scores()` condenses it to the set's metrics,
`scores(images)` to those of a resampled set, as a paired bootstrap over images asks for. All values are
fractions of 1; a value that does not exist (no ground truth of that kind) is NaN.

Masks and labels are scored by torchmetrics, boxes by pycocotools in average_precision.py; both lack tallies per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_stat_scores

from data.types import Task

Scores: TypeAlias = dict[str, float]
Images: TypeAlias = Sequence[int] | NDArray[np.int64]

SCORE_NAMES: dict[Task, tuple[str, ...]] = {
    "det": ("mAP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR100", "mAP_known"),
    "seg": ("mIoU", "mIoU_foreground", "pixel_acc"),
    "cls": ("Top-1", "Top-1_known"),
}
"""The keys of `scores()`, by task; the first is the headline metric."""
HEADLINE: dict[Task, str] = {"seg": "mIoU", "det": "mAP", "cls": "Top-1"}
"""The metric of each task that must not drop, in the order of the stages."""
AT_ONCE = 1 << 24
"""Numbers that the mask of an image may take up at once: memory is bounded by the picture, not by its classes."""


class Tally(Protocol):
    """What a model did on the images of one set."""

    def __len__(self) -> int:
        """Number of images."""

    def scores(self, images: Images | None = None) -> Scores:
        """Metrics over `images` (positions in the set, a repeat is a further image), by default over all."""

    def per_class(self) -> dict[str, Scores]:
        """Metrics of each class, known ones first."""


# --- segmentation -----------------------------------------------------------------------------------------


def predicted_mask(logits: Tensor, size: tuple[int, int], at_once: int = AT_ONCE) -> Tensor:
    """Class of every pixel, int16 `size` = (H, W): logits (C, h, w) upsampled bilinearly, then argmax; 0 without class.

    No more than `at_once` upsampled logits (or one row of them) are in memory: a large mask is made strip by strip.
    """
    height, width = size
    if not len(logits):
        return torch.zeros(size, dtype=torch.int16, device=logits.device)
    rows = max(1, at_once // (len(logits) * width))
    if rows >= height:
        return best_class(logits, size)
    at = ((torch.arange(height, device=logits.device) + 0.5) * (logits.shape[1] / height) - 0.5).clamp(min=0)
    above = at.long()
    below, far = (above + 1).clamp(max=logits.shape[1] - 1), (at - above).float()[:, None]
    mask = torch.empty(size, dtype=torch.int16, device=logits.device)
    for strip, a, b, share in zip(mask.split(rows), above.split(rows), below.split(rows), far.split(rows)):
        mixed = torch.lerp(logits[:, a].float(), logits[:, b].float(), share)
        strip.copy_(best_class(mixed, (len(a), width)))
    return mask


def best_class(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The same with all upsampled logits in memory."""
    # With the classes innermost in memory the argmax takes a third of the time.
    logits = logits[None].float().contiguous(memory_format=torch.channels_last)
    upsampled = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return upsampled[0].permute(1, 2, 0).argmax(-1).short()


def confusion_matrix(truth: Tensor, predicted: Tensor, num_classes: int, void: int | None = None) -> NDArray[np.int64]:
    """Counts int64 (num_classes, num_classes), rows truth, columns prediction; truth `void` does not count.

    Raises ValueError if the shapes differ or a truth label is neither below `num_classes` nor `void`.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has shape {tuple(truth.shape)}, prediction {tuple(predicted.shape)}")
    foreign = truth >= num_classes if void is None else (truth >= num_classes) & (truth != void)
    if foreign.any():  # torchmetrics counts how many labels there are, not which
        raise ValueError(f"label {int(truth[foreign].max())} with {num_classes} classes")
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for t, p in zip(truth.flatten().split(AT_ONCE), predicted.flatten().split(AT_ONCE)):  # made int64 on the way
        counts = multiclass_confusion_matrix(p, t, num_classes, ignore_index=void, validate_args=False)
        matrix += counts.cpu().numpy()
    return matrix


class CountedIoU(MulticlassJaccardIndex):
    """IoU of each class (K,) from confusion matrices (n, K, K) of images, which were counted before."""

    def update(self, matrices: Tensor) -> None:  # type: ignore[override]
        """Add the counts of further images."""
        self.confmat += matrices.sum(0)


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
    # Only one of several processes scores: a sum over all of them would wait for the others for ever.
    metric = CountedIoU(len(matrix), average="none", sync_on_compute=False)
    metric.update(torch.from_numpy(matrix)[None])
    absent = matrix.sum(axis=0) + matrix.sum(axis=1) == 0
    return np.where(absent, np.nan, metric.compute().double().numpy())


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
        known = labels < len(self.classes)
        return {
            "Top-1": self._accuracy(labels, predicted),
            "Top-1_known": self._accuracy(labels[known], predicted[known]),
        }

    def _accuracy(self, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
        if not len(labels):
            return float("nan")
        num_classes = max(2, len(self.classes) + len(self.unknown))  # torchmetrics refuses a set of one class
        both = torch.from_numpy(predicted), torch.from_numpy(labels)
        right, *_, images = multiclass_stat_scores(*both, num_classes, average="micro").tolist()
        return float(right / images)

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
