"""Box arithmetic shared by head, matcher and criterion. Boxes are cx cy w h, as fractions of the image."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

MAX_LOG_SCALE = 4.0
"""Bound of the size step of one refinement, so that exp() cannot overflow (e^4 = 55 times the reference)."""


def to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) cx cy w h to x1 y1 x2 y2, in fewer steps than torchvision: in an exported model each costs."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def refine(delta: Tensor, reference: Tensor) -> Tensor:
    """Apply predicted steps (..., 4) to reference boxes (..., 4).

    Centres move in units of the reference size and sizes change by a factor, so one projection serves large and
    small references alike. Source: R-CNN (arXiv 1311.2524), appendix C.
    """
    centre, size = reference[..., :2], reference[..., 2:]
    step, log_scale = delta[..., :2], delta[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    return torch.cat([centre + step * size, size * log_scale.exp()], dim=-1)


def constant(like: Tensor, *values: float) -> Tensor:
    """A float32 vector made where `like` lies; copied there, it would wait for all that a GPU still has to do."""
    return torch.stack([torch.full((), value, dtype=torch.float32, device=like.device) for value in values])


def grid_references(height: int, width: int, scale: float, device: torch.device) -> Tensor:
    """Reference boxes (height * width, 4), one per cell of a feature map, `scale` cells wide and high."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    cy, cx = torch.meshgrid(y, x, indexing="ij")
    size = repeat(constant(cx, scale / width, scale / height), "wh -> y x wh", y=height, x=width)
    return rearrange(torch.cat([cx[..., None], cy[..., None], size], dim=-1), "y x box -> (y x) box")


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (...) of intersection and union of boxes x1 y1 x2 y2 (..., 4), pair by pair after broadcasting."""
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return inter, (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of boxes a and b (..., 4), pair by pair after broadcasting; 0 where a box has no area."""
    return corner_iou(to_xyxy(a), to_xyxy(b))


def corner_iou(a: Tensor, b: Tensor) -> Tensor:
    """The same of boxes x1 y1 x2 y2."""
    inter, union = overlap(a, b)
    return inter / union.clamp(min=1e-9)


def pair_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (...) of boxes a and b (..., 4), pair by pair after broadcasting (arXiv 1902.09630)."""
    a, b = to_xyxy(a), to_xyxy(b)
    inter, union = overlap(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inter / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)
