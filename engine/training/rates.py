"""Who learns how fast, and when: groups of parameters and the schedule of their rates."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from torch import nn

from continual.base import TASK_SPECIFIC
from engine.settings.config import OptimConfig
from models.onehead import OneHead


def parameter_groups(
    model: OneHead, config: OptimConfig, lr: float, shared: float = 1.0, task_specific: Collection[str] = TASK_SPECIFIC
) -> list[dict[str, Any]]:
    """Groups by rate (`shared` times `lr` for what tasks share), weight decay (matrices and filters have it) and owner.

    What single tasks own has no decay: rows of old tasks may get no gradient, and shall not fade either.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        own = name in task_specific
        factor = 1.0 if own else shared * (config.backbone_lr if name.startswith("backbone.") else 1.0)
        decay = config.weight_decay if p.ndim > 1 and not own else 0.0
        groups.setdefault((lr * factor, decay, own), []).append(p)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "own": own}
        for (rate, decay, own), params in groups.items()
    ]


def rate(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step as a share of the highest: linear warm-up, then cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def flat_then_cosine(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step as a share of the highest: linear warm-up, flat up to the middle, then cosine to zero."""
    rise, middle = max(1, round(steps * warmup)), steps // 2
    if step < middle:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * (step - middle) / max(1, steps - middle)))


def shared_rate(step: int, steps: int, warmup: float, probe: float) -> float:
    """Share of the highest rate for what tasks share: none while rows learn to read it, then a rise as long.

    Gradients of untrained rows distort features that old tasks read (arXiv 2202.10054: first probe, then fine-tune).
    """
    wait = round(steps * probe)
    if step < wait:
        return 0.0
    return rate(step - wait, steps - wait, max(warmup, wait / max(1, steps - wait)))
