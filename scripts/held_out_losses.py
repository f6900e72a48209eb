"""What checkpoints cost on unseen images, and how far their masks are from those of the first one.

python -m scripts.held_out_losses runs/mine/seg.pt runs/mine/det.pt --data.root data --json results/held-losses.json

On 40 images mAP hangs on single boxes; the loss of every box does not. The images are those that the runs evaluated:
held back with `--data.holdout true`, else the validation sets. `drift` is the mean divergence per pixel, in nats, of
masks from those of the first checkpoint; `agree` the share of pixels, of those the first calls an object, that are
called the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from continual.teacher_remedy import divergence
from data.dataset import TaskDataset
from data.types import Task, TaskSet
from engine.evaluation.evaluate import Evaluator
from engine.settings.config import Config
from engine.settings.options import build_parser, to_config
from engine.storage.checkpoint import load, load_model, provenance
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_text
from engine.training.batches import Batch, collate
from engine.training.sets import read_sets
from models.criterion import Criterion
from models.onehead import OneHead

TERMS = ("seg_ce", "seg_dice", "conf", "l1", "giou", "cls_ce")
"""Of the last layer; weights of the loss are part of them."""
SETTINGS = ("distill", "replay_step", "replay_vary", "freeze_statistics")
"""Of `continual`, as the record shows them."""
METRICS = ("mIoU", "mAP", "AP50", "Top-1")
BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Score the checkpoints one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="the first is what drift is measured from")
    parser.add_argument("--data.root", dest="root", default="data", help="folder that holds the sets")
    parser.add_argument("--json", type=Path, help="where the record goes")
    args = parser.parse_args(argv)
    check_same(args.checkpoints)
    config, size = trained_with(args.checkpoints[0], args.root), load_model(args.checkpoints[0]).input_size
    sets = read_sets(config)[1]
    evaluator = Evaluator(sets, size)
    seen = {task: batches(held, size) for task, held in sets.items()}
    first: Tensor | None = None
    found = []
    for path in args.checkpoints:
        model = load_model(path)
        row: dict[str, Any] = {"checkpoint": f"{path.parent.name}/{path.name}", "settings": settings(path)}
        if "seg" in seen:
            masks = mask_logits(model, seen["seg"])
            first = masks if first is None else first
            row |= drift(masks, first)
        row |= losses(model, seen, config)
        scores = evaluator.run(model).scores
        found.append({**row, **{name: round(scores[name], 4) for name in METRICS if name in scores}})
        print("  ".join(f"{k} {v}" for k, v in found[-1].items()), flush=True)
    if args.json:
        write_text(args.json, json.dumps({"rows": found, **provenance()}, indent=1) + "\n")
    return 0


def check_same(checkpoints: Sequence[Path]) -> None:
    """Raise UserError where one may have learnt from what the first one held back, or looks at another size."""
    first, *others = checkpoints
    unseen, size = held_back(first), load_model(first).input_size
    for path in others:
        if load_model(path).input_size != size:
            raise UserError(f"{path} looks at pictures of another size than {first}: give checkpoints of one size")
        if held_back(path) != unseen:
            raise UserError(
                f"{path} holds back other images than {first} (data.holdout, data.fold): it may have learnt from those "
                "that both would be scored on; give checkpoints that hold back the same"
            )


def held_back(path: Path) -> tuple[bool, int]:
    """Whether a checkpoint's run held training images back, and which part of them."""
    data = load(path)["config"].get("data", {})  # published weights do not have it
    return data.get("holdout", False), data.get("fold", 0)


def trained_with(path: Path, root: str) -> Config:
    """The configuration of a checkpoint's run, with the data at `root`."""
    parser = build_parser("", "")
    config = to_config(parser, parser.parse_object(load(path)["config"]))
    return replace(config, data=replace(config.data, root=root))


def settings(path: Path) -> dict[str, Any]:
    """What a checkpoint's last stage did against forgetting; keys that its code did not know yet are missing."""
    content = load(path)
    config, stage = content["config"], content["stage"]
    own = {"shared_lr": config["optim"]["shared_lr"][stage], "probe": config["optim"].get("probe", 0.0)}
    return {**own, **{key: config["continual"][key] for key in SETTINGS if key in config["continual"]}}


def batches(task_set: TaskSet, size: int) -> list[Batch]:
    """A set as evaluation sees it."""
    images: Any = TaskDataset(task_set, size, None)
    return list(DataLoader(images, BATCH, collate_fn=collate))


@torch.no_grad()
def mask_logits(model: OneHead, seen: list[Batch]) -> Tensor:
    """Logits (N, K, S/8, S/8) of the masks of all images."""
    return torch.cat([model(images)["pred_masks"] for images, _ in seen]).float()


def drift(masks: Tensor, first: Tensor) -> dict[str, float]:
    """How far masks are from others."""
    was, now = first.argmax(1), masks.argmax(1)
    agree = (was == now)[was > 0].float().mean()
    return {"drift": round(float(divergence(masks, first, dim=1).mean()), 4), "agree": round(float(agree), 3)}


@torch.no_grad()
def losses(model: OneHead, seen: dict[Task, list[Batch]], config: Config) -> dict[str, float]:
    """Mean over batches of every term, each on the images that are annotated for it."""
    criterion, sums = Criterion(config.loss), dict[str, list[float]]()
    for images, targets in itertools.chain(*seen.values()):
        for name, value in criterion(model(images), targets).items():
            if name in TERMS:
                sums.setdefault(name, []).append(float(value))
    return {name: round(sum(sums[name]) / len(sums[name]), 3) for name in TERMS if name in sums}


if __name__ == "__main__":
    sys.exit(run_cli(main))
