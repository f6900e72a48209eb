"""What a start is worth downstream: each task alone, a short fixed fine-tuning, from several starts and seeds.

python scripts/stage0_worth.py --start random=null --start whole=runs/stage0/pretrain.pt \
    --start backbone=backbone:runs/stage0/pretrain.pt --out results/stage0_worth.json --data.root data

Each cell is one `engine.train` process; cells that the output file holds already are skipped, so the command goes on
where it was stopped. Options that this script does not know are handed on to every training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.checkpoint import build_model, load, load_backbone, model_content, save
from engine.errors import UserError, run_cli
from engine.tracking import write_text
from models.onehead import OneHead

METRICS = {"seg": ("mIoU",), "det": ("mAP", "AP50"), "cls": ("Top-1",)}


def backbone_only(source: Path, target: Path) -> Path:
    """Write a copy of a checkpoint whose neck and head are untrained."""
    model = build_model(load(source), str(source))
    torch.manual_seed(0)
    fresh = OneHead(model.config, model.classes, model.input_size)
    load_backbone(fresh, source)
    save(target, model_content(fresh))
    return target


def cell(name: str, init: str, task: str, seed: int, options: Sequence[str]) -> dict[str, object]:
    """Train one task alone from one start; returns its scores and minutes."""
    run = Path("runs", f"worth-{name}-{task}-{seed}")
    command = [sys.executable, "-m", "engine.train", "--stage", task, "--order", f"[{task}]", "--name", run.name]
    command += ["--init", init, "--seed", str(seed), "--resume", *options]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{' '.join(command)} failed; see above")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    scores = {m: rows[-1][m] for m in METRICS[task]}
    cost = {k: summary[k] for k in ("minutes", "commit")}
    return {"start": name, "task": task, "seed": seed, **scores, **cost}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", action="append", required=True, metavar="NAME=CHECKPOINT")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--tasks", default="seg,det,cls")
    parser.add_argument("--config", default="configs/fast.yaml")
    parser.add_argument("--out", type=Path, required=True)
    args, options = parser.parse_known_args(argv)
    options = ["--config", args.config, *options]
    done = json.loads(args.out.read_text())["cells"] if args.out.exists() else []
    for seed in map(int, args.seeds.split(",")):
        for start in args.start:
            name, _, init = start.partition("=")
            if init.startswith("backbone:"):
                init = str(backbone_only(Path(init.removeprefix("backbone:")), Path("runs", f"{name}-only.pt")))
            for task in args.tasks.split(","):
                if not any((c["start"], c["task"], c["seed"]) == (name, task, seed) for c in done):
                    done.append(cell(name, init, task, seed, options))
                    write_text(args.out, json.dumps({"options": options, "cells": done}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
