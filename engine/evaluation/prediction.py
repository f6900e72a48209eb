"""Predictions for one picture of any size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data.transforms import Picture, eval_transform
from engine.evaluation.metrics import predicted_mask
from models.boxes import to_xyxy
from models.onehead import OneHead
from models.postprocess import detections


@dataclass(frozen=True)
class Box:
    """An object: its class, score in 0..1, and corners x1 y1 x2 y2 in pixels."""

    name: str
    score: float
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class Prediction:
    """All that is predicted for one image.

    label, probability: class of the image; boxes: surest first; mask: uint8 (H, W), index into `seg_classes`.
    """

    label: str
    probability: float
    boxes: list[Box]
    mask: np.ndarray
    det_classes: tuple[str, ...]
    seg_classes: tuple[str, ...]

    @property
    def regions(self) -> dict[str, float]:
        """Share of the pixels of every class in the mask, largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.seg_classes))
        order = [int(i) for i in counts.argsort()[::-1] if counts[i]]
        return {self.seg_classes[i]: float(counts[i]) / self.mask.size for i in order}

    def to_json(self) -> dict[str, Any]:
        """As plain values; the mask as shares of the regions."""
        return {
            "label": self.label,
            "probability": self.probability,
            "boxes": [asdict(box) for box in self.boxes],
            "regions": self.regions,
        }


@torch.no_grad()
def predict(model: OneHead, image: Image.Image, score: float = 0.3) -> Prediction:
    """Run a model on an RGB image of any size; boxes from `score` on are kept."""
    picture = Picture(tv_tensors.Image(F.pil_to_tensor(image)), 0)
    outputs = model(eval_transform(model.input_size)(picture).image[None].to(model.mean.device))
    found = detections(outputs)[0]
    sure = found["scores"] >= score
    corners = (to_xyxy(found["boxes"]) * found["boxes"].new_tensor(image.size * 2))[sure].tolist()
    names = [model.classes["det"][int(k)] for k in found["labels"][sure]]
    boxes = [Box(n, s, tuple(c)) for n, s, c in zip(names, found["scores"][sure].tolist(), corners)]
    mask = predicted_mask(outputs["pred_masks"][0], (image.height, image.width)).to(torch.uint8).cpu().numpy()
    chances = outputs["pred_class"][0].float().softmax(0)
    best = int(chances.argmax())
    return Prediction(
        model.classes["cls"][best], float(chances[best]), boxes, mask, model.classes["det"], model.classes["seg"]
    )
