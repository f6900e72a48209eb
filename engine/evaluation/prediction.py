"""Predictions for one picture of any size."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from data.pixels import to_tensor
from data.transforms import Picture, eval_transform
from engine.evaluation.evaluate import Model
from engine.evaluation.metrics import predicted_mask
from engine.evaluation.pictures import AnyPicture, rgb_picture
from models.boxes import to_xyxy
from models.postprocess import detections

LEAST_SHARE = 0.005
"""Of an image's pixels: smaller regions are not named."""


@dataclass(frozen=True)
class Box:
    """An object: its class, score in 0..1, and corners x1 y1 x2 y2 in pixels."""

    name: str
    score: float
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class Prediction:
    """All that is predicted for one image.

    chances: probability of every class of the image, likeliest first, empty where the model has learnt no
    classification; boxes: surest first; mask: (H, W), index into `seg_classes`, uint8 or, with more than 256 classes,
    int16.
    """

    chances: dict[str, float]
    boxes: list[Box]
    mask: np.ndarray
    det_classes: tuple[str, ...]
    seg_classes: tuple[str, ...]

    @property
    def label(self) -> str | None:
        """The likeliest class of the image; None where the model has learnt no classification."""
        return next(iter(self.chances), None)

    @property
    def probability(self) -> float:
        """Of the label; 0 where there is none."""
        return next(iter(self.chances.values()), 0.0)

    @cached_property
    def regions(self) -> dict[str, float]:
        """Share of the pixels of every class in the mask, largest first."""
        counts = np.sum([np.bincount(row, minlength=len(self.seg_classes)) for row in self.mask], axis=0)
        order = [int(i) for i in counts.argsort()[::-1] if counts[i] and self.seg_classes]
        return {self.seg_classes[i]: float(counts[i]) / self.mask.size for i in order}

    @property
    def named_regions(self) -> dict[str, float]:
        """The regions that are large enough to be named."""
        return {name: share for name, share in self.regions.items() if share >= LEAST_SHARE}

    def in_words(self) -> str:
        """Label, boxes and regions in a line, such as "church (58%); boxes: 2 person, car; regions: person 31%"."""
        label = [] if self.label is None else [f"{self.label} ({self.probability:.0%})"]
        counts = Counter(box.name for box in self.boxes)
        boxes = ", ".join(name if n == 1 else f"{n} {name}" for name, n in counts.items())
        regions = ", ".join(f"{name} {share:.0%}" for name, share in self.named_regions.items())
        parts = [("boxes", boxes if self.det_classes else None), ("regions", regions if self.seg_classes else None)]
        return "; ".join([*label, *(f"{what}: {text or 'none'}" for what, text in parts if text is not None)])

    def to_json(self) -> dict[str, Any]:
        """As plain values; the mask as shares of the regions."""
        return {
            "label": self.label,
            "probability": self.probability,
            "boxes": [asdict(box) for box in self.boxes],
            "regions": self.regions,
        }


def network_input(image: Image.Image, size: int) -> Tensor:
    """An RGB image as evaluation reads it: float32 (1, 3, size, size) in 0..1."""
    return eval_transform(size)(Picture(tv_tensors.Image(to_tensor(image)), 0)).image[None]


@torch.no_grad()
def predict(model: Model, picture: AnyPicture, score: float | None = None) -> Prediction:
    """Run a model on a picture of any size and kind (see `engine.evaluation.pictures`).

    score: boxes from here on are kept; None: from the model's own threshold on.
    Boxes are in pixels of the picture as given; of a file or URL, held upright. Raises DataError and ValueError for
    what is no picture.
    """
    image = rgb_picture(picture)
    device = getattr(model, "mean", torch.zeros(())).device  # an ONNX file has no weights that lie anywhere
    outputs = model(network_input(image, model.input_size).to(device))
    found = detections(outputs)[0]
    sure = found["scores"] >= (model.threshold if score is None else score)
    corners = (to_xyxy(found["boxes"]) * found["boxes"].new_tensor(image.size * 2))[sure].tolist()
    names = [model.classes["det"][int(k)] for k in found["labels"][sure]]
    boxes = [Box(n, s, tuple(c)) for n, s, c in zip(names, found["scores"][sure].tolist(), corners)]
    mask = predicted_mask(outputs["pred_masks"][0], (image.height, image.width)).cpu().numpy()
    if len(model.classes["seg"]) <= 256:
        mask = mask.astype(np.uint8)
    chances = outputs["pred_class"][0].float().softmax(0)
    likeliest = {model.classes["cls"][int(k)]: float(chances[k]) for k in chances.argsort(descending=True, stable=True)}
    return Prediction(likeliest, boxes, mask, model.classes["det"], model.classes["seg"])
