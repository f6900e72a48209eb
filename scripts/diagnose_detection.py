"""Where detections are won and lost: scores of every reading on the way from the maps to the last layer.

python -m scripts.diagnose_detection runs/real/det.pt --data_root data --holdout

One row a reading: all places, which are the cells of all maps (after non-maximum suppression, as a dense detector would
give them), the selected ones, the queries after each layer. `found` is the share of objects with any box of IoU >= 0.5,
whatever its class. `pooled` is AP50 over all (image, class) pairs as if they were one class: with few images it is far
steadier than the mean over classes, in which three cats weigh as much as two hundred people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from data.catalog import load_set
from data.dataset import TaskDataset
from data.images import image_size
from data.types import TaskSet
from engine.checkpoint import load_model
from engine.errors import run_cli
from engine.metrics import MAX_DETECTIONS, Detections, DetectionTally
from models.boxes import to_xyxy
from models.head import pick
from models.onehead import OneHead
from models.postprocess import detections

SCORES = ("mAP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


def readings(outputs: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Object predictions by name, in the order in which the network makes them."""
    dense, index = outputs["dense"], outputs["queries"].index
    selected = {
        "pred_boxes": pick(dense["pred_boxes"], index),
        "pred_logits": pick(dense["pred_logits"], index),
        "pred_conf": dense["pred_conf"].gather(1, index),
    }
    layers = [*(o for o in outputs["aux_outputs"] if "pred_boxes" in o), outputs]
    return {"places + NMS": dense, "selected": selected, **{f"layer {i + 1}": o for i, o in enumerate(layers)}}


def best(out: dict[str, Tensor], suppress: bool) -> dict[str, Tensor]:
    """Scores, labels and boxes x1 y1 x2 y2, fractions, of one image."""
    found = detections(out, top_k=1000 if suppress else MAX_DETECTIONS)[0]
    found["boxes"] = to_xyxy(found["boxes"])
    if suppress:
        kept = batched_nms(found["boxes"], found["scores"], found["labels"], 0.6)[:MAX_DETECTIONS]
        found = {k: v[kept] for k, v in found.items()}
    return found


@torch.no_grad()
def diagnose(model: OneHead, task_set: TaskSet) -> dict[str, dict[str, float]]:
    """Scores of every reading of `model` on a detection set."""
    dataset = TaskDataset(task_set, model.input_size, None)
    found: dict[str, list[Detections]] = {}
    hits: dict[str, list[Tensor]] = {}
    for i, record in enumerate(task_set.records):
        size = torch.tensor(image_size(record.image) * 2)
        truth = record.boxes[~record.crowd]
        for name, out in readings(model(dataset[i].image[None])).items():
            one = best({k: out[k] for k in ("pred_boxes", "pred_logits", "pred_conf")}, "NMS" in name)
            boxes = one["boxes"] * size
            found.setdefault(name, []).append(Detections(boxes, one["scores"], one["labels"]))
            if len(truth):
                hits.setdefault(name, []).append((box_iou(truth, boxes) >= 0.5).any(1).float())
    table = {}
    for name, boxes_of in found.items():
        scores = DetectionTally(task_set.records, tuple(boxes_of), task_set.classes, task_set.unknown).scores()
        found_rate = float(torch.cat(hits[name]).mean())
        table[name] = {**{k: scores[k] for k in SCORES}, "pooled": pooled(task_set, boxes_of), "found": found_rate}
    return table


def pooled(task_set: TaskSet, found: Sequence[Detections]) -> float:
    """AP50 with one precision-recall curve for all classes."""
    records, detections = [], []
    for record, one in zip(task_set.records, found):
        for k in range(len(task_set.classes)):
            true, said = record.labels == k, one.labels == k
            boxes, crowd, area = record.boxes[true], record.crowd[true], record.area[true]
            records.append(replace(record, boxes=boxes, labels=record.labels[true] * 0, crowd=crowd, area=area))
            detections.append(Detections(one.boxes[said], one.scores[said], one.labels[said] * 0))
    return DetectionTally(tuple(records), tuple(detections), ("object",)).scores()["AP50"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--holdout", action="store_true", help="training images held back by data.holdout, not val")
    args = parser.parse_args(argv)
    model = load_model(args.weights)
    split, part = ("train", "choose") if args.holdout else ("val", "all")
    task_set = load_set(args.data_root, "det", split, model.classes["det"], part=part)  # type: ignore[arg-type]
    table = diagnose(model, task_set)
    print(f"{'reading':<14}" + "".join(f"{k:>8}" for k in (*SCORES, "pooled", "found")))
    for name, row in table.items():
        print(f"{name:<14}" + "".join(f"{v:>8.3f}" for v in row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
