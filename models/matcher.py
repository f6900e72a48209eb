"""Which prediction answers for which object: one-to-one (Hungarian) and one-to-many (locations).

Shape suffixes: B batch, N predictions of an image, P locations, M objects of the batch, k candidates of an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.boxes import pair_giou, pair_iou
from models.head import Outputs
from models.locations import CELLS_PER_REFERENCE
from models.targets import Targets

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


@dataclass
class Objects:
    """All M objects of a batch in one row: the image of each, its box (M, 4) and label (M,); images as in the batch."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    counts: list[int]

    @staticmethod
    def of(targets: Targets) -> Objects:
        """Join the objects of all images."""
        counts = [len(b) for b in targets.boxes]
        boxes, labels = torch.cat(targets.boxes), torch.cat(targets.labels)
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        return Objects(image.to(boxes.device), boxes, labels, counts)

    def matched(self, chosen: Tensor, query: Tensor) -> Match:
        """The match of objects `chosen` (m,) with predictions `query` (m,) of their images."""
        return Match(self.image[chosen], query, self.boxes[chosen], self.labels[chosen])


def object_cost(outputs: Outputs, objects: Objects) -> Tensor:
    """Cost (M, N) of giving each object to each prediction of its own image."""
    chance_BCN = outputs["pred_logits"].float().sigmoid().transpose(1, 2)
    score = chance_BCN[objects.image, objects.labels]
    boxes, wanted = outputs["pred_boxes"].float()[objects.image], objects.boxes[:, None]
    distance = (boxes - wanted).abs().sum(-1)
    return -COST_CLASS * score + COST_L1 * distance - COST_GIOU * pair_giou(boxes, wanted)


def check_finite(outputs: Outputs) -> None:
    """Raise FloatingPointError naming the tensor that is not finite: an assignment made from NaN would be arbitrary."""
    for name in ("pred_logits", "pred_boxes"):
        if not torch.isfinite(outputs[name]).all():
            raise FloatingPointError(f"{name} is not finite")


def assign(cost_MN: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
    """The cheapest pairs (object, prediction) in which nothing stands twice, image by image."""
    pairs, start = [], 0
    for rows in cost_MN.cpu().split(objects.counts):
        own, query = linear_sum_assignment(rows.numpy())
        pairs.append((torch.as_tensor(own) + start, torch.as_tensor(query)))
        start += len(rows)
    own, query = (torch.cat(part).to(cost_MN.device) for part in zip(*pairs))
    return own, query


@torch.no_grad()
def match_one_to_one(outputs: Outputs, targets: Targets, groups: int = 1) -> Match:
    """Hungarian matching of predictions (B, G * N, ...) to objects, anew in each of the G groups.

    Every object gets exactly one prediction a group (or none, where objects outnumber predictions), no prediction two.
    Source: DETR, arXiv 2005.12872, section 3.1; groups: Group DETR, arXiv 2207.13085.
    """
    check_finite(outputs)
    objects = Objects.of(targets)
    size = outputs["pred_boxes"].shape[1] // groups
    parts = []
    for g, cost in enumerate(object_cost(outputs, objects).split(size, dim=1)[:groups]):
        own, query = assign(cost, objects)
        parts.append(objects.matched(own, query + g * size))
    return Match.cat(parts)


@torch.no_grad()
def match_one_to_many(outputs: Outputs, targets: Targets, most: int = 9) -> Match:
    """Several locations for each object: the cheapest of those whose cell lies near its centre.

    Every object first gets one location of its own (Hungarian), so that a small one is not left out beside a large
    one. It takes as many as the sum of its best IoUs, between 1 and `most`; of two objects at one location the cheaper
    one gets it. Source: SimOTA in YOLOX, arXiv 2107.08430, section 2.3, which lacks the first step.
    """
    check_finite(outputs)
    objects = Objects.of(targets)
    locations = outputs["pred_boxes"].shape[1]
    cost = object_cost(outputs, objects) + 100.0 * centre_distance(outputs["references"], objects.boxes)
    iou = pair_iou(outputs["pred_boxes"].float()[objects.image], objects.boxes[:, None])
    count = iou.topk(min(most, locations), dim=1).values.sum(1).long().clamp(min=1)
    price_Mk, location_Mk = cost.topk(min(most, locations), dim=1, largest=False)
    wanted = torch.arange(price_Mk.shape[1], device=cost.device) < count[:, None]
    object_, price, location = wanted.nonzero()[:, 0], price_Mk[wanted], location_Mk[wanted]
    own, own_location = assign(cost, objects)
    cell, own_cell = objects.image[object_] * locations + location, objects.image[own] * locations + own_location
    lowest = cost.new_full((len(outputs["pred_boxes"]) * locations,), torch.inf).scatter_reduce(0, cell, price, "amin")
    lowest[own_cell] = -torch.inf
    first = torch.full_like(lowest, len(objects.boxes), dtype=torch.int64)
    won = price == lowest[cell]
    first = first.scatter_reduce(0, cell[won], object_[won], "amin")  # of two at the same price
    won &= object_ == first[cell]
    return objects.matched(torch.cat([own, object_[won]]), torch.cat([own_location, location[won]]))


def centre_distance(references_P4: Tensor, boxes_M4: Tensor) -> Tensor:
    """How far (M, P) a cell's centre lies outside the object's core, in object sizes; 0 inside.

    The core is the middle half of the object, widened to one cell so that the smallest objects own a cell too.
    """
    boxes, references = boxes_M4[:, None], references_P4[None]
    core = torch.maximum(boxes[..., 2:] / 4, references[..., 2:] / (2 * CELLS_PER_REFERENCE))
    outside = (references[..., :2] - boxes[..., :2]).abs() - core
    return (outside.clamp(min=0) / boxes[..., 2:].clamp(min=1e-3)).amax(-1)
