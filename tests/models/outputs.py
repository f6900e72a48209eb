"""Outputs of a network made up for tests of the loss, and what is read off them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.criterion import LossConfig
from models.head import Outputs
from models.targets import NO_CLASS, Targets
from tests.models.builders import CLASSES, random_objects

SIZE = 64
PLAIN = LossConfig(**dict.fromkeys(("conf", "l1", "giou", "seg_ce", "seg_dice", "cls_ce"), 1.0), smoothing=0.0)
LN2 = math.log(2)


def fixed_outputs(batch: int, aux: int = 0, seed: int = 0, size: int = SIZE) -> Outputs:
    """Random outputs as leaves, so that gradients can be read at them."""
    generator = torch.Generator().manual_seed(seed)

    def layer(seed: int) -> Outputs:
        return {
            **random_objects(batch, 8, seed=seed),
            "pred_masks": torch.randn(batch, len(CLASSES["seg"]), size // 8, size // 8, generator=generator),
            "pred_class": torch.randn(batch, len(CLASSES["cls"]), generator=generator),
        }

    outputs = layer(seed)
    outputs["aux_outputs"] = [layer(seed + 1 + i) for i in range(aux)]
    references = torch.rand(20, 4, generator=generator) * 0.5 + 0.25
    outputs["dense"] = {**random_objects(batch, 20, seed=seed + 9), "references": references}
    return outputs


def leaves(outputs: Outputs) -> list[Tensor]:
    """All predictions, with gradient switched on."""
    parts = [outputs, outputs["dense"], *outputs["aux_outputs"], *outputs.get("extra_outputs", [])]
    return [v.requires_grad_() for part in parts for k, v in part.items() if k.startswith("pred_")]


def without_gradient(outputs: Outputs) -> Outputs:
    """A copy with each tensor detached."""

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        return [copy(v) for v in value] if isinstance(value, list) else {k: copy(v) for k, v in value.items()}

    return copy(outputs)


def part(outputs: Any, rows: slice, key: str = "") -> Any:
    """The images `rows` of nested outputs."""
    if isinstance(outputs, Tensor):
        return outputs if key == "references" else outputs[rows]
    if isinstance(outputs, list):
        return [part(v, rows) for v in outputs]
    return {k: part(v, rows, k) for k, v in outputs.items()}


def subset(targets: Targets, rows: slice) -> Targets:
    return Targets(*(getattr(targets, f)[rows] for f in ("boxes", "labels", "has_boxes", "masks", "classes")))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def mask_targets(masks: Tensor) -> Targets:
    n = len(masks)
    return Targets(
        [torch.zeros(0, 4)] * n,
        [torch.zeros(0, dtype=torch.int64)] * n,
        torch.zeros(n, dtype=torch.bool),
        masks,
        torch.full((n,), NO_CLASS),
    )
