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
    scores = outputs["pred_conf"].float().sigmoid()[..., None] * outputs["pred_logits"].float().softmax(-1)
    B, N, C = scores.shape
    best, index = scores.flatten(1).topk(min(top_k, N * C), dim=1)
    boxes = clip(outputs["pred_boxes"].float())
    return [{"scores": best[b], "labels": index[b] % C, "boxes": boxes[b][index[b] // C]} for b in range(B)]


def clip(boxes: Tensor) -> Tensor:
    """Cut boxes (..., 4) cx cy w h off at the image's edge."""
    low = (boxes[..., :2] - boxes[..., 2:] / 2).clamp(0, 1)
    high = (boxes[..., :2] + boxes[..., 2:] / 2).clamp(0, 1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)
