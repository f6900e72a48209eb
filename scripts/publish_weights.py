"""Turn a checkpoint of a run into a file to give away, without optimiser, kept images or figures of the run.

Stage 0's weights, from which trainings go on, in half precision, those of a whole network in eight bits.

python -m scripts.publish_weights runs/stage0/pretrain.pt weights/fast_scnn_stage0.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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


def main(argv: Sequence[str] | None = None) -> int:
    """Read the checkpoint, lower its precision, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    content = load(args.checkpoint)
    scales: dict[str, Tensor] = {}
    if content.get("stage") == "pretrain":
        found = {name: content[name] for name in ("architecture", *WEIGHTS) if name in content}
        found = {name: half(value) if name in WEIGHTS else value for name, value in found.items()}
        found["teacher"] = without_folder(content["teacher"])
    else:
        found = model_content(build_model(content, str(args.checkpoint)))
        found["model"], scales = quantised(found["model"])
        found |= {SCALES: {"model": scales}, "format": EIGHT_BITS}
    stored = [*scales.values(), *(v for name in WEIGHTS for v in found.get(name, {}).values())]
    if not all(torch.isfinite(v).all() for v in stored):
        raise UserError(f"{args.checkpoint} holds a weight too large to be stored, or not finite: publish another one")
    content["config"] = {k: v for k, v in content["config"].items() if k not in ("data", "pretrain", "runs")}
    save(args.target, {**found, **{k: content[k] for k in PUBLISHED if k in content}})
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
