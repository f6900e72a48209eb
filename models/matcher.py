"""Which prediction answers for which object: one-to-one (Hungarian) and one-to-many (places).

Shape suffixes: B batch, N predictions of an image, P places, n objects of an image, m matched pairs of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from models.boxes import to_xyxy
from models.head import CELLS_PER_REFERENCE, Outputs
from models.targets import UNNAMED, Targets

COST_CLASS, COST_L1, COST_GIOU = 2.0, 5.0, 2.0
"""Weights of DETR's cost (arXiv 2005.12872, section 3.1), class cost 2 as in Deformable DETR."""


@dataclass
class Match:
    """m pairs: prediction `query` of image `image` answers for an object with `boxes` (m, 4) and `labels` (m,)."""

    image: Tensor
    query: Tensor
    boxes: Tensor
    labels: Tensor

    @staticmethod
    def cat(parts: list[Match]) -> Match:
        """All pairs of several matches."""
        return Match(*(torch.cat([getattr(p, f) for p in parts]) for f in ("image", "query", "boxes", "labels")))

    @staticmethod
    def of(pairs: list[tuple[Tensor, Tensor]], targets: Targets, offset: int = 0) -> Match:
        """From (queries, objects) per image; `offset` is added to the query numbers."""
        image = torch.cat([torch.full_like(q, b) for b, (q, _) in enumerate(pairs)])
        query = torch.cat([q for q, _ in pairs]) + offset
        boxes = torch.cat([targets.boxes[b][o] for b, (_, o) in enumerate(pairs)])
        labels = torch.cat([targets.labels[b][o] for b, (_, o) in enumerate(pairs)])
        return Match(image, query, boxes, labels)


def object_cost(conf: Tensor, logits: Tensor, boxes: Tensor, target_boxes: Tensor, target_labels: Tensor) -> Tensor:
    """Cost (N, n) of giving each object to each prediction of one image; any class suits an unnamed object."""
    chance = logits.float().softmax(-1)[:, target_labels.clamp(min=0)].where(target_labels != UNNAMED, 1.0)
    score = conf.float().sigmoid()[:, None] * chance
    boxes = boxes.float()
    giou = generalized_box_iou(to_xyxy(boxes), to_xyxy(target_boxes))
    return -COST_CLASS * score + COST_L1 * torch.cdist(boxes, target_boxes, p=1) - COST_GIOU * giou


def check_finite(outputs: Outputs) -> None:
    """Raise FloatingPointError naming the tensor that is not finite: an assignment made from NaN would be arbitrary."""
    for name in ("pred_conf", "pred_logits", "pred_boxes"):
        if not torch.isfinite(outputs[name]).all():
            raise FloatingPointError(f"{name} is not finite")


@torch.no_grad()
def match_one_to_one(outputs: Outputs, targets: Targets, groups: int = 1) -> Match:
    """Hungarian matching of predictions (B, G * N, ...) to objects, anew in each of the G groups.

    Every object gets exactly one prediction a group (or none, where objects outnumber predictions), no prediction two.
    Source: DETR, arXiv 2005.12872, section 3.1; groups: Group DETR, arXiv 2207.13085.
    """
    check_finite(outputs)
    size = outputs["pred_conf"].shape[1] // groups
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(groups)]
    for b, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels)):
        cost = object_cost(outputs["pred_conf"][b], outputs["pred_logits"][b], outputs["pred_boxes"][b], boxes, labels)
        for g, part in enumerate(cost.cpu().split(size)[:groups]):
            rows, columns = linear_sum_assignment(part.numpy())
            found[g].append((torch.as_tensor(rows, device=boxes.device), torch.as_tensor(columns, device=boxes.device)))
    return Match.cat([Match.of(pairs, targets, g * size) for g, pairs in enumerate(found)])


@torch.no_grad()
def match_one_to_many(outputs: Outputs, targets: Targets, most: int = 9) -> Match:
    """Several places for each object: the cheapest of those whose cell lies near its centre.

    Every object first gets one token of its own (Hungarian), so that a small one is not left out beside a large one. It
    wants as many as the sum of its best IoUs, between 1 and `most`; a token wanted by two objects goes to the cheaper
    one. Source: SimOTA in YOLOX, arXiv 2107.08430, section 2.3, which lacks the first step.
    """
    check_finite(outputs)
    pairs = []
    for b, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels)):
        if len(boxes) == 0:
            empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
            pairs.append((empty, empty))
            continue
        predicted = outputs["pred_boxes"][b].float()
        cost = object_cost(outputs["pred_conf"][b], outputs["pred_logits"][b], predicted, boxes, labels)
        cost = cost + 100.0 * centre_distance(outputs["references"], boxes)
        iou = box_iou(to_xyxy(predicted), to_xyxy(boxes))
        count = iou.topk(min(most, len(iou)), dim=0).values.sum(0).long().clamp(min=1)
        rank = cost.argsort(dim=0).argsort(dim=0)
        wanted = torch.where(rank < count, cost, torch.inf)
        own = tuple(torch.as_tensor(i, device=cost.device) for i in linear_sum_assignment(cost.cpu().numpy()))
        wanted[own[0]] = torch.inf
        wanted[own] = cost[own]
        best, objects = wanted.min(dim=1)
        tokens = best.isfinite().nonzero()[:, 0]
        pairs.append((tokens, objects[tokens]))
    return Match.of(pairs, targets)


def centre_distance(references_P4: Tensor, boxes_n4: Tensor) -> Tensor:
    """How far (P, n) a cell's centre lies outside the object's core, in object sizes; 0 inside.

    The core is the middle half of the object, widened to one cell so that the smallest objects own a cell too.
    """
    core = torch.maximum(boxes_n4[None, :, 2:] / 4, references_P4[:, None, 2:] / (2 * CELLS_PER_REFERENCE))
    outside = (references_P4[:, None, :2] - boxes_n4[None, :, :2]).abs() - core
    return (outside.clamp(min=0) / boxes_n4[None, :, 2:].clamp(min=1e-3)).amax(-1)
