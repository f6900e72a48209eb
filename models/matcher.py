"""Which prediction answers for which object: one-to-one (Hungarian) and one-to-many (locations).

Shape suffixes: B batch, N predictions of an image, P locations, M objects of the batch, k candidates of an object.
"""

from __future__ import annotations

from collections.abc import Sequence
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
FAR = 100.0
"""Cost of lying an object's size outside its core: above all other costs, but finite, so each object gets a place."""


@dataclass
class Match:
    """m pairs: prediction `query` of image `image` answers for an object with `boxes` (m, 4) and `labels` (m,)."""

    image: Tensor
    query: Tensor
    boxes: Tensor
    labels: Tensor

    def shifted(self, start: int) -> Match:
        """The same pairs where predictions are counted from `start` on."""
        return Match(self.image, self.query + start, self.boxes, self.labels)

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
    names = ("pred_logits", "pred_boxes")
    finite = torch.stack([torch.isfinite(outputs[name]).all() for name in names]).tolist()
    if not all(finite):
        raise FloatingPointError(f"{names[finite.index(False)]} is not finite")


def assign(cost_MN: Tensor, objects: Objects, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The cheapest pairs (object, prediction) of each run of predictions, in which nothing stands twice.

    `sizes`: predictions of each run, N in all. On a GPU all costs cross to the CPU in one transfer, all pairs in one
    back: each makes the CPU wait until the GPU has done everything before.
    """
    runs = []
    for cost_Mn in cost_MN.cpu().split(list(sizes), dim=1):
        pairs, start = [], 0
        for rows in cost_Mn.split(objects.counts):
            own, query = linear_sum_assignment(rows.numpy())
            pairs.append(torch.stack([torch.as_tensor(own) + start, torch.as_tensor(query)]))
            start += len(rows)
        runs.append(torch.cat(pairs, dim=1))
    found = torch.cat(runs, dim=1).to(cost_MN.device).split([run.shape[1] for run in runs], dim=1)
    return [(own, query) for own, query in found]


@torch.no_grad()
def match_one_to_one(runs: Sequence[Outputs], targets: Targets) -> list[Match]:
    """Hungarian matching of each of several runs of predictions (B, N, ...), N of each its own, to all objects.

    Every object gets exactly one prediction a run (or none, where objects outnumber predictions), no prediction two.
    Source: DETR, arXiv 2005.12872, section 3.1; several runs a layer: Group DETR, arXiv 2207.13085.
    """
    objects = Objects.of(targets)
    together = {name: torch.cat([run[name] for run in runs], dim=1) for name in ("pred_logits", "pred_boxes")}
    cost = object_cost(together, objects)
    check_finite(together)
    pairs = assign(cost, objects, [run["pred_boxes"].shape[1] for run in runs])
    return [objects.matched(own, query) for own, query in pairs]


@torch.no_grad()
def match_one_to_many(outputs: Outputs, targets: Targets, most: int = 9) -> Match:
    """Several locations for each object: the cheapest of those whose cell lies near its centre.

    Every object first gets one location of its own (Hungarian), so that a small one is not left out beside a large
    one. It takes as many as the sum of its best IoUs, between 1 and `most`; of two objects at one location the cheaper
    one gets it. Source: SimOTA in YOLOX, arXiv 2107.08430, section 2.1, which lacks the first step.
    """
    check_finite(outputs)
    objects = Objects.of(targets)
    locations = outputs["pred_boxes"].shape[1]
    cost = object_cost(outputs, objects) + FAR * centre_distance(outputs["references"], objects.boxes)
    iou = pair_iou(outputs["pred_boxes"].float()[objects.image], objects.boxes[:, None])
    count = iou.topk(min(most, locations), dim=1).values.sum(1).long().clamp(min=1)
    price_Mk, location_Mk = cost.topk(min(most, locations), dim=1, largest=False)
    wanted = torch.arange(price_Mk.shape[1], device=cost.device) < count[:, None]
    object_, rank = wanted.nonzero(as_tuple=True)
    price, location = price_Mk[object_, rank], location_Mk[object_, rank]
    ((own, own_location),) = assign(cost, objects, [locations])
    cell, own_cell = objects.image[object_] * locations + location, objects.image[own] * locations + own_location
    lowest = cost.new_full((len(outputs["pred_boxes"]) * locations,), torch.inf).scatter_reduce(0, cell, price, "amin")
    lowest[own_cell] = -torch.inf
    nobody = len(objects.boxes)
    won = price == lowest[cell]
    first = torch.full_like(lowest, nobody, dtype=torch.int64)
    first = first.scatter_reduce(0, cell, object_.where(won, nobody), "amin")  # of two at the same price
    winners = (won & (object_ == first[cell])).nonzero()[:, 0]
    return objects.matched(torch.cat([own, object_[winners]]), torch.cat([own_location, location[winners]]))


def centre_distance(references_P4: Tensor, boxes_M4: Tensor) -> Tensor:
    """How far (M, P) a cell's centre lies outside the object's core, in object sizes; 0 inside.

    The core is the middle half of the object, widened to one cell so that the smallest objects own a cell too.
    """
    boxes, references = boxes_M4[:, None], references_P4[None]
    core = torch.maximum(boxes[..., 2:] / 4, references[..., 2:] / (2 * CELLS_PER_REFERENCE))
    outside = (references[..., :2] - boxes[..., :2]).abs() - core
    return (outside.clamp(min=0) / boxes[..., 2:].clamp(min=1e-3)).amax(-1)
