"""A tiny model and small random annotations, shared by the tests of models and remedies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.onehead import ModelConfig, OneHead
from models.targets import NO_CLASS, VOID, Targets

CLASSES = {
    "det": ("cat", "dog", "bird"),
    "seg": ("background", "cat", "dog", "bird", "car"),
    "cls": ("tench", "church", "horn", "pump"),
}
TINY = {"dim": 32, "heads": 2, "hidden": 64, "queries": 12}
SIZE = 96
"""Side of the tiny model's input: 189 locations, 45 of them memory tokens."""


def tiny(seed: int = 0, **changes: Any) -> OneHead:
    """A small OneHead in eval mode, whose batch norms have seen one batch: activations are of natural size."""
    torch.manual_seed(seed)
    model = OneHead(ModelConfig(**{**TINY, **changes}), CLASSES, SIZE)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(4, seed=seed))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def images(count: int, height: int = SIZE, width: int | None = None, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width or height, generator=generator)


def boxes_in_view(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random boxes (count, 4) that lie wholly inside the image."""
    size = torch.rand(count, 2, generator=generator) * 0.4 + 0.05
    centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([centre, size], dim=1)


def random_targets(tasks: Sequence[str | None], objects: int = 3, size: int = SIZE, seed: int = 0) -> Targets:
    """One image for each entry: annotated for "det", "seg", "cls", for "all" three, or for nothing (None)."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for task in tasks:
        n = objects if task in ("det", "all") else 0
        mask = torch.full((1, size, size), VOID)
        label = NO_CLASS
        if task in ("seg", "all"):
            coarse = torch.randint(0, len(CLASSES["seg"]), (1, size // 16, size // 16), generator=generator)
            mask = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
        if task in ("cls", "all"):
            label = int(torch.randint(0, len(CLASSES["cls"]), (), generator=generator))
        parts.append(
            Targets(
                boxes=[boxes_in_view(n, generator)],
                labels=[torch.randint(0, len(CLASSES["det"]), (n,), generator=generator)],
                has_boxes=torch.tensor([task in ("det", "all")]),
                masks=mask,
                classes=torch.tensor([label]),
            )
        )
    return Targets.cat(parts)


def object_targets(boxes: Sequence[Tensor], labels: Sequence[Tensor], size: int = 32) -> Targets:
    """Detection annotations only."""
    return Targets(
        boxes=list(boxes),
        labels=list(labels),
        has_boxes=torch.ones(len(boxes), dtype=torch.bool),
        masks=torch.full((len(boxes), size, size), VOID),
        classes=torch.full((len(boxes),), NO_CLASS),
    )


def random_objects(batch: int, count: int, classes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random object predictions."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": torch.randn(batch, count, classes, generator=generator),
        "pred_boxes": boxes_in_view(batch * count, generator).view(batch, count, 4),
    }


def tensors(outputs: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of nested outputs, by path; the training-only "extra_outputs" are left out."""
    found = {}
    for key, value in outputs.items():
        if isinstance(value, Tensor):
            found[prefix + key] = value
        elif isinstance(value, dict):
            found.update(tensors(value, f"{prefix}{key}."))
        elif key == "aux_outputs":
            for i, aux in enumerate(value):
                found.update(tensors(aux, f"{prefix}{key}[{i}]."))
        elif key == "queries":
            found.update({f"{prefix}queries.index": value.index, f"{prefix}queries.boxes": value.boxes})
    return found
