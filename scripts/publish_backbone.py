"""Write the backbone of a checkpoint as .safetensors, under the layer names of the published table, for other projects.

python -m scripts.publish_backbone weights/fast_scnn_stage0.pt fast_scnn_stage0.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from engine.storage.checkpoint import backbone_of, load
from engine.storage.errors import UserError, run_cli
from engine.storage.files import cannot_write, write_bytes
from models.backbones import build_backbone, image_statistics
from models.backbones.fast_scnn import published_names
from scripts.publish_weights import half


def main(argv: Sequence[str] | None = None) -> int:
    """Read the checkpoint, rename its layers, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of a Fast-SCNN: after stage 0 or any later stage")
    parser.add_argument("target", type=Path)
    args = parser.parse_args(argv)
    if args.target.suffix != ".safetensors":
        raise UserError(f"{args.target}: name a file that ends in .safetensors")
    content = load(args.checkpoint)
    weights = published_names(half(backbone_of(content, args.checkpoint, "fast_scnn")))
    weights = {k: v.contiguous() for k, v in weights.items()}  # training may have left them channels last
    try:
        write_bytes(args.target, save(weights, metadata(content)))
    except OSError as error:
        raise cannot_write(args.target, error) from None
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")
    return 0


def metadata(content: dict[str, Any]) -> dict[str, str]:
    """What a user has to know beside the weights, as text."""
    mean, std = image_statistics(build_backbone("fast_scnn"))
    return {
        "architecture": "Fast-SCNN without its classifier, arXiv 1902.04502, table 1",
        "mean": json.dumps([round(float(v), 4) for v in mean.flatten()]),
        "std": json.dumps([round(float(v), 4) for v in std.flatten()]),
        "stage": str(content["stage"]),
        "teacher": str(content.get("teacher", "none")),
    }


if __name__ == "__main__":
    sys.exit(run_cli(main))
