"""From raw outputs to what a person reads: boxes with scores, a class mask, a label."""

from __future__ import annotations

import torch
from torch import Tensor

from models.head import Outputs


@torch.no_grad()
def detections(outputs: Outputs, top_k: int = 100) -> list[dict[str, Tensor]]:
    """The best `top_k` (object query, class) pairs of each image; no non-maximum suppression is needed.

    Returns per image: scores (k,) in 0..1, descending; labels int64 (k,); boxes (k, 4), cx cy w h inside 0..1.
    """
    scores, labels, boxes = best_pairs(outputs, top_k)
    return [{"scores": s, "labels": y, "boxes": b} for s, y, b in zip(scores, labels, boxes)]


def best_pairs(outputs: Outputs, top_k: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """The same for all images at once: scores and labels (B, k), boxes (B, k, 4)."""
    chances = outputs["pred_conf"].float().sigmoid()[..., None] * outputs["pred_logits"].float().softmax(-1)
    classes = chances.shape[-1]
    scores, index = chances.flatten(1).topk(min(top_k, chances.shape[1] * classes), dim=1)
    owner = (index // classes)[..., None].expand(-1, -1, 4)
    return scores, index % classes, clip(outputs["pred_boxes"].float()).gather(1, owner)


def clip(boxes: Tensor) -> Tensor:
    """Cut boxes (..., 4) cx cy w h off at the image's edge."""
    low = (boxes[..., :2] - boxes[..., 2:] / 2).clamp(0, 1)
    high = (boxes[..., :2] + boxes[..., 2:] / 2).clamp(0, 1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)
