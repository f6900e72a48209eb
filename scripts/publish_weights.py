"""Turn a checkpoint of a run into a file to give away, without optimiser, kept images or figures of the run.

A backbone of stage 0, from which trainings go on, in half precision, a whole network in eight bits. `--stage0` adds
the readouts of the backbone that a network began with, so that stage 0 can go on from it and `recall` name pictures.

python -m scripts.publish_weights runs/onehead/cls.pt weights/onehead.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.storage.checkpoint import EIGHT_BITS, build_model, load, model_content, save
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


def with_readouts(stage0: Path) -> dict[str, Any]:
    """The readouts of a checkpoint of stage 0, and whom they imitate. Raises UserError if it holds none."""
    content = load(stage0)
    if not {"readout", "readouts", "teacher"} <= content.keys():
        raise UserError(
            f"{stage0} holds no readouts: give a checkpoint of --stage pretrain, such as runs/stage0/pretrain.pt"
        )
    return {
        "readout": content["readout"],
        "readouts": content["readouts"],
        "teacher": without_folder(content["teacher"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Read the checkpoint, lower its precision, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--stage0", type=Path, help="a checkpoint of stage 0 whose readouts the file is to hold too")
    args = parser.parse_args(argv)
    content = load(args.checkpoint)
    if content.get("stage") == "pretrain":
        found = {"architecture": content["architecture"], **with_readouts(args.checkpoint), "model": content["model"]}
        found |= {name: half(found[name]) for name in WEIGHTS}
    else:
        found = model_content(build_model(content, str(args.checkpoint)))
        found |= with_readouts(args.stage0) if args.stage0 else {}
        found |= in_eight_bits({name: found[name] for name in WEIGHTS if name in found})
    stored = [*found.get(SCALES, {}).values(), *(found[name] for name in WEIGHTS if name in found)]
    if not all(torch.isfinite(v).all() for group in stored for v in group.values()):
        raise UserError(f"{args.checkpoint} holds a weight too large to be stored, or not finite: publish another one")
    content["config"] = {k: v for k, v in content["config"].items() if k not in ("data", "pretrain", "runs")}
    if args.stage0:  # a start for trainings, as stage 0 itself, which lists no photographs either
        content.pop("training_images", None)
    save(args.target, {**found, **{k: content[k] for k in PUBLISHED if k in content}})
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")
    return 0


def in_eight_bits(groups: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Groups of weights as they are stored, their scales, and the format of such a file."""
    stored = {name: quantised(weights) for name, weights in groups.items()}
    scales = {name: of for name, (_, of) in stored.items()}
    return {**{name: weights for name, (weights, _) in stored.items()}, SCALES: scales, "format": EIGHT_BITS}


if __name__ == "__main__":
    sys.exit(run_cli(main))
