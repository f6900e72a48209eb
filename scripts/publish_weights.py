"""Turn a checkpoint of a run into a file to give away, without optimiser, kept images or figures of the run.

A backbone of stage 0, from which trainings go on, in half precision, a whole network in eight bits. `--stage0` adds
the readouts of the backbone that a network began with, so that stage 0 can go on from it and `recall` name pictures.

python -m scripts.publish_weights runs/onehead/cls.pt weights/onehead.pt
python -m scripts.publish_weights runs/warm/det.pt start.pt --stage0 weights/fast_scnn_stage0.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.storage.checkpoint import EIGHT_BITS, backbone_of, build_model, holds_head, load, model_content, save
from engine.storage.eight_bits import SCALES, quantised
from engine.storage.errors import UserError, run_cli

WEIGHTS = ("model", "readout", "readouts")
PUBLISHED = ("stage", "config", "seconds", "training_images", "provenance")


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision; counts stay."""
    return {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}


def without_folder(teacher: str) -> str:
    """A teacher's network and the name or address of its file."""
    network, comma, source = teacher.partition(", ")
    return teacher if "://" in source else network + comma + Path(source).name


def main(argv: Sequence[str] | None = None) -> int:
    """Read the checkpoint, lower its precision, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--stage0", type=Path, help="a checkpoint of stage 0 whose readouts the file is to hold too")
    args = parser.parse_args(argv)
    content = load(args.checkpoint)
    found = of_network(content, args) if holds_head(content) else of_backbone(content, args)
    groups = [*found.get(SCALES, {}).values(), *(found[name] for name in WEIGHTS if name in found)]
    if not all(torch.isfinite(v).all() for group in groups for v in group.values()):
        raise UserError(f"{args.checkpoint} holds a weight too large to be stored, or not finite: publish another one")
    content["config"] = {k: v for k, v in content["config"].items() if k not in ("data", "pretrain", "runs")}
    save(args.target, {**found, **{k: content[k] for k in PUBLISHED if k in content}})
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")
    return 0


def of_backbone(content: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What is published of stage 0: backbone and readouts in half precision. Raises UserError as `backbone_of`."""
    if args.stage0:
        raise UserError(f"{args.checkpoint} is of stage 0 and has readouts of its own: leave --stage0 out")
    backbone_of(content, args.checkpoint, content.get("architecture", {}).get("backbone", ""))
    found = {"architecture": content["architecture"], "model": content["model"], **readouts_of(content)}
    return {name: half(value) if name in WEIGHTS else value for name, value in found.items()}


def of_network(content: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What is published of a whole network, in eight bits. Raises UserError for a stage 0 of another backbone."""
    found = {**model_content(build_model(content, str(args.checkpoint))), **readouts_of(content)}
    if args.stage0:
        stage0 = load(args.stage0)
        backbone_of(stage0, args.stage0, found["architecture"]["backbone"])
        if not {"readout", "readouts"} <= stage0.keys():
            raise UserError(f"{args.stage0} holds no readouts: give a checkpoint that --stage pretrain ended with")
        found |= readouts_of(stage0)
    stored = {name: quantised(found[name]) for name in WEIGHTS if name in found}
    found |= {name: weights for name, (weights, _) in stored.items()}
    return {**found, SCALES: {name: scales for name, (_, scales) in stored.items()}, "format": EIGHT_BITS}


def readouts_of(content: dict[str, Any]) -> dict[str, Any]:
    """The readouts of stage 0 that a checkpoint holds, and whose they are."""
    found: dict[str, Any] = {name: content[name] for name in ("readout", "readouts") if name in content}
    return found | {"teacher": without_folder(content["teacher"])} if "teacher" in content else found


if __name__ == "__main__":
    sys.exit(run_cli(main))
