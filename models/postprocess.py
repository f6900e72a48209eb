"""From raw outputs to what a person reads: boxes with scores, a class mask, a label.

Shape suffixes: B batch, N object queries, C classes of objects, K classes of masks, H, W cells of a map, Q squares
between four neighbouring cells, S side of a square.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from models.boxes import corner_iou, to_xyxy
from models.head import Outputs

SAME = 0.6
"""Boxes of one class that overlap by more than this IoU are one object, found twice."""
TWICE = 0.01
"""What is left of the score of the less sure one."""
THRESHOLD = 0.4
"""Boxes of a lower score are not shown, by networks whose own threshold was not measured."""


@torch.no_grad()
def detections(outputs: Outputs, top_k: int = 100, same: float = SAME) -> list[dict[str, Tensor]]:
    """The best `top_k` (object query, class) pairs of each image; `same` = 1 takes queries that found one object alike.

    Returns per image: scores (k,) in 0..1, descending; labels int64 (k,); boxes (k, 4), cx cy w h inside 0..1.
    """
    scores, labels, corners = best_pairs(outputs, top_k, same)
    boxes = box_convert(corners, "xyxy", "cxcywh")
    return [{"scores": s, "labels": y, "boxes": b} for s, y, b in zip(scores, labels, boxes)]


def best_pairs(outputs: Outputs, top_k: int = 100, same: float = SAME) -> tuple[Tensor, Tensor, Tensor]:
    """The same for all images at once: scores and labels (B, k), boxes (B, k, 4) as x1 y1 x2 y2."""
    logits_BNC = outputs["pred_logits"].float()
    chances_BNC = logits_BNC.sigmoid()
    corners = to_xyxy(outputs["pred_boxes"].float()).clamp(0, 1)
    if same < 1:
        chances_BNC = chances_BNC * torch.where(overlap_with_surer(logits_BNC, corners) > same, TWICE, 1.0)
    classes = chances_BNC.shape[-1]
    pairs = rearrange(chances_BNC, "b n c -> b (n c)")
    scores, index = pairs.topk(min(top_k, pairs.shape[1]), dim=1)
    owner = repeat(index // classes, "b k -> b k corners", corners=4)
    return scores, index % classes, corners.gather(1, owner)


def overlap_with_surer(logits_BNC: Tensor, corners_BN4: Tensor) -> Tensor:
    """Largest IoU (B, N, C) of each query's box with that of a query which is surer of the class, 0 without one.

    Of two that are equally sure, the first counts as surer.

    One-to-one matching should leave none, but 240 images do not teach that. Logits are compared, not scores: a sigmoid
    may differ in its last digit by the query's number, as vector code and its remainder do. Source: Fast NMS of YOLACT,
    arXiv 1904.02689: no loop, so that it can be exported.
    """
    iou_BNN = corner_iou(corners_BN4[:, :, None], corners_BN4[:, None])
    own, other = logits_BNC[:, :, None], logits_BNC[:, None]
    number = torch.arange(logits_BNC.shape[1], device=logits_BNC.device)
    first_NN1 = (number < number[:, None])[..., None]
    surer_BNNC = (other > own) | ((other == own) & first_NN1)  # ONNX Runtime has no `where` of truths
    return (iou_BNN[..., None] * surer_BNNC).amax(2)


def class_masks(logits_BKHW: Tensor, scale: int) -> Tensor:
    """Class of every pixel, int64 (B, H * scale, W * scale): logits upsampled bilinearly by an even scale, then argmax.

    Exact, but most pixels are never interpolated: between four cells with the same best class no other can win.
    Without classes every pixel is 0.
    """
    batch, classes, height, width = logits_BKHW.shape
    if not classes:
        return logits_BKHW.new_zeros(batch, height * scale, width * scale, dtype=torch.long)
    side = scale // 2
    cells = rearrange(F.pad(logits_BKHW, (1, 1, 1, 1), mode="replicate"), "b k h w -> b h w k").contiguous()
    best = cells.argmax(-1).short()  # a quarter of what argmax gives to move about
    corner = best[:, :-1, :-1]
    mixed = (corner != best[:, :-1, 1:]) | (corner != best[:, 1:, :-1]) | (corner != best[:, 1:, 1:])
    b, y, x = mixed.nonzero(as_tuple=True)
    corners_Q4K = torch.stack([cells[b, y, x], cells[b, y, x + 1], cells[b, y + 1, x], cells[b, y + 1, x + 1]], dim=1)
    pixels_QSS = (bilinear(scale, cells) @ corners_Q4K).argmax(-1).short()
    squares = repeat(corner, "b h w -> b h w s", s=scale * scale).index_put((b, y, x), pixels_QSS)
    pixels = rearrange(squares, "b h w (y x) -> b (h y) (w x)", y=scale)
    return pixels[:, side:-side, side:-side].long()


def bilinear(scale: int, like: Tensor) -> Tensor:
    """Weights (scale * scale, 4) of a square's corners, row by row, for its pixels."""
    far = (torch.arange(scale, device=like.device, dtype=like.dtype) + 0.5) / scale
    weights = torch.stack([1 - far, far], dim=1)
    return torch.kron(weights, weights)
