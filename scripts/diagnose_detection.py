"""Where detections are won and lost: scores of every reading on the way from the maps to the last layer.

python -m scripts.diagnose_detection runs/real/det.pt --data_root data
python -m scripts.diagnose_detection runs/fold{0,1,2}/det.pt --data_root data --images held

Several checkpoints are read as one, each on the images that it held back (`data.fold`), three times as many. One row
a reading: all locations, which are the cells of all maps (after non-maximum suppression, as a dense detector would give
them), the selected ones, the queries after each layer. `found` is the share of objects with any box of IoU >= 0.5,
whatever its class. `pooled` is AP50 over all (image, class) pairs as if they were one class: on few images it is far
steadier than the mean over classes, in which three cats weigh as much as two hundred people. `nameless` is the same
with classes ignored. Below, what locations make of objects of every size: how well the best of all boxes fits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from data.catalog import load_set
from data.dataset import TaskDataset
from data.images import image_size
from data.types import Record, TaskSet
from engine.evaluation.average_precision import MAX_DETECTIONS, Detections, DetectionTally
from engine.storage.checkpoint import load, load_model, provenance
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_text
from models.boxes import to_xyxy
from models.head import pick
from models.onehead import OneHead
from models.postprocess import SAME, detections

SIDES = (0, 8, 16, 32, 64, 128, 4096)
"""Bounds of the sizes that are distinguished, in pixels of the input."""
SCORES = ("mAP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


def readings(outputs: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Object predictions by name, in the order in which the network makes them."""
    dense, index = outputs["dense"], outputs["queries"].index
    selected = {
        "pred_boxes": pick(dense["pred_boxes"], index),
        "pred_logits": pick(dense["pred_logits"], index),
    }
    layers = [*(o for o in outputs["aux_outputs"] if "pred_boxes" in o), outputs]
    return {"places + NMS": dense, "selected": selected, **{f"layer {i + 1}": o for i, o in enumerate(layers)}}


def best(out: dict[str, Tensor], suppress: bool, same: float) -> dict[str, Tensor]:
    """Scores, labels and boxes x1 y1 x2 y2, fractions, of one image."""
    found = detections(out, 1000, same=1)[0] if suppress else detections(out, MAX_DETECTIONS, same)[0]
    found["boxes"] = to_xyxy(found["boxes"])
    if suppress:
        kept = batched_nms(found["boxes"], found["scores"], found["labels"], 0.6)[:MAX_DETECTIONS]
        found = {k: v[kept] for k, v in found.items()}
    return found


@torch.no_grad()
def diagnose(
    pairs: Sequence[tuple[OneHead, TaskSet]], same: float = SAME
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Scores of every reading of models, each on its own images, and what locations make of objects of every size."""
    task_set = replace(pairs[0][1], records=tuple(r for _, part in pairs for r in part.records))
    found: dict[str, list[Detections]] = {}
    hits: dict[str, list[Tensor]] = {}
    overlaps: list[Tensor] = []
    for model, record, image in examples(pairs):
        size = torch.tensor(image_size(record.image) * 2)
        truth = record.boxes[~record.crowd]
        outputs = model(image)
        for name, out in readings(outputs).items():
            one = best({k: out[k] for k in ("pred_boxes", "pred_logits")}, "NMS" in name, same)
            boxes = one["boxes"] * size
            found.setdefault(name, []).append(Detections(boxes, one["scores"], one["labels"]))
            if len(truth):
                hits.setdefault(name, []).append((box_iou(truth, boxes) >= 0.5).any(1).float())
        if len(truth):
            side = ((truth[:, 2:] - truth[:, :2]) / size[2:]).prod(1).sqrt() * model.input_size
            everywhere = to_xyxy(outputs["dense"]["pred_boxes"][0]) * size
            overlaps.append(torch.stack([side, box_iou(truth, everywhere).amax(1)], dim=1))
    table = {}
    for name, boxes_of in found.items():
        scores = DetectionTally(task_set.records, tuple(boxes_of), task_set.classes, task_set.unknown).scores()
        alike = replace(task_set, classes=("object",), records=tuple(nameless(r) for r in task_set.records))
        table[name] = {
            **{k: scores[k] for k in SCORES},
            "pooled": pooled(task_set, boxes_of),
            "nameless": pooled(alike, [Detections(d.boxes, d.scores, d.labels * 0) for d in boxes_of]),
            "found": float(torch.cat(hits[name]).mean()),
        }
    return table, by_size(torch.cat(overlaps))


def examples(pairs: Sequence[tuple[OneHead, TaskSet]]) -> Iterator[tuple[OneHead, Record, Tensor]]:
    """Every model with the images (1, 3, S, S) of its set."""
    for model, task_set in pairs:
        dataset = TaskDataset(task_set, model.input_size, None)
        for i, record in enumerate(task_set.records):
            yield model, record, dataset[i].image[None]


def nameless(record: Record) -> Record:
    """The same objects, all of one class."""
    return replace(record, labels=record.labels * 0)


def by_size(overlap_n2: Tensor) -> dict[str, dict[str, float]]:
    """Objects and the mean of their best overlaps, by side in pixels of the input; rows of (side, best IoU)."""
    table = {}
    for low, high in pairwise(SIDES):
        of = overlap_n2[(overlap_n2[:, 0] >= low) & (overlap_n2[:, 0] < high), 1]
        if len(of):
            table[f"{low}-{high} px"] = {"objects": float(len(of)), "best IoU": float(of.mean())}
    return table


def pooled(task_set: TaskSet, found: Sequence[Detections]) -> float:
    """AP50 with one precision-recall curve for all classes."""
    records, detections = [], []
    for record, one in zip(task_set.records, found):
        for k in range(len(task_set.classes)):
            true, predicted = record.labels == k, one.labels == k
            boxes, crowd, area = record.boxes[true], record.crowd[true], record.area[true]
            records.append(replace(record, boxes=boxes, labels=record.labels[true] * 0, crowd=crowd, area=area))
            detections.append(Detections(one.boxes[predicted], one.scores[predicted], one.labels[predicted] * 0))
    return DetectionTally(tuple(records), tuple(detections), ("object",)).scores()["AP50"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--data_root", default="data")
    parts = ("val", "held", "learnt")
    parser.add_argument("--images", choices=parts, default="val", help="held: those of data.holdout; learnt: the rest")
    parser.add_argument("--same", type=float, default=SAME, help="IoU from which two boxes are one object; 1: never")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables here")
    args = parser.parse_args(argv)
    if len(args.weights) > 1 and args.images != "held":
        raise UserError("several checkpoints are read as one on what each held back: add --images held")
    pairs = [with_images(path, args.data_root, args.images) for path in args.weights]
    images = [record.image for _, task_set in pairs for record in task_set.records]
    if len(set(images)) < len(images):
        raise UserError("two checkpoints held back the same images: give runs that differ in --data.fold")
    table, sizes = diagnose(pairs, args.same)
    show(table)
    print()
    show(sizes)
    if args.json:
        names = [load(path)["config"]["name"] for path in args.weights]
        about = {"run": ", ".join(names), "images": args.images, "same": args.same, **provenance()}
        write_text(args.json, json.dumps({**about, "readings": table, "sizes": sizes}, indent=1) + "\n")
    return 0


def with_images(path: str, root: str, images: str) -> tuple[OneHead, TaskSet]:
    """A checkpoint's model with the detection images that it is read on."""
    data = load(path)["config"].get("data", {})  # published weights have none
    model, fold = load_model(path), data.get("fold", 0)
    split, part = ("val", "all") if images == "val" else ("train", "choose" if images == "held" else "fit")
    return model, load_set(root, "det", split, model.classes["det"], part=part, fold=fold)  # type: ignore[arg-type]


def show(table: dict[str, dict[str, float]]) -> None:
    """Print a table; its columns are those of its first row."""
    print(" " * 14 + "".join(f"{k:>9}" for k in next(iter(table.values()))))
    for name, row in table.items():
        print(f"{name:<14}" + "".join(f"{v:>9.3f}" for v in row.values()))


if __name__ == "__main__":
    sys.exit(run_cli(main))
