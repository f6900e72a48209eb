"""Backbones behind one contract: `channels`, `strides` = (8, 16, 32), and `forward(images) -> three maps`.

To add one, write a file beside `fast_scnn.py` and name its class here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from models.backbones.fast_scnn import FastSCNN


class Backbone(Protocol):
    """What the neck asks of a backbone: channels per level, and (B, 3, H, W) -> maps at strides 8, 16, 32."""

    channels: tuple[int, int, int]
    strides: tuple[int, int, int]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the three maps."""
        ...


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "fast_scnn": FastSCNN,
}
