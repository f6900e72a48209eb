"""Weights stored in eight bits: matrices and filters as int8 with a scale an output channel, the rest as float16.

They are float32 again when they are read. Source: symmetric quantisation per channel, arXiv 1806.08342, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SCALES = "scales"
"""Key of a checkpoint's content that holds, for each group of weights, the scales of those stored as int8."""
LEAST = 32
"""Filters of fewer values, depthwise ones and those of the image, stay float16: they are few, and sensitive."""
STEPS = 127


def quantised(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights as they are stored, and the scales (C,), float32, of those that are int8 (C, ...).

    The largest weight of each output channel is 127 steps, so that none moves by more than half a step.
    """
    stored, scales = {}, {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            stored[name] = weight
        elif weight.dim() < 2 or weight[:1].numel() < LEAST:
            stored[name] = weight.half()
        else:
            scale = (weight.float().flatten(1).abs().amax(1) / STEPS).clamp(min=torch.finfo(torch.float).tiny)
            steps = (weight.float() / per_channel(scale, weight)).round().clamp(-STEPS, STEPS)
            stored[name], scales[name] = steps.to(torch.int8), scale
    return stored, scales


def restore(content: dict[str, Any], size: int) -> None:
    """Make the int8 weights of a checkpoint's content float32 again, in place; a content without any stays as it is.

    Raises ValueError where scales fit no weights, or these are more than a file of `size` bytes can hold.
    """
    for group, scales in content.pop(SCALES, {}).items():
        for name, scale in scales.items():
            steps = content[group][name]
            size -= steps.numel()
            if steps.dtype != torch.int8 or scale.shape != steps.shape[:1] or size < 0:
                raise ValueError(f"scales of {name} do not fit")
            content[group][name] = steps.float() * per_channel(scale, steps)


def per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale (C,), to be multiplied with a weight (C, ...)."""
    return scale.view(-1, *[1] * (weight.dim() - 1))
