"""Backbones behind one contract: `channels`, `strides` = (8, 16, 32), and `forward(images) -> three maps`.

To add one, write a file beside `fast_scnn.py` and name its class here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from models.backbones.fast_scnn import FastSCNN
from models.backbones.timm_features import TimmFeatures
from models.backbones.yolov8 import YOLOv8n


class Backbone(Protocol):
    """What the neck needs of a backbone: channels per level, and (B, 3, H, W) -> maps at strides 8, 16, 32.

    One whose weights know images on another scale than ImageNet's mean and deviation has them as `mean_std`. Layers are
    listed in the order that they run in, a batch norm right behind its convolution, and one convolution alone reads the
    image; else norms are neither folded (models.deploy) nor absorbed (models.absorption), and a note says so.
    """

    channels: tuple[int, int, int]
    strides: tuple[int, int, int]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the three maps."""
        ...


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "fast_scnn": FastSCNN,
    "mobilenetv3_small": partial(TimmFeatures, "mobilenetv3_small_100"),
    "efficientnet_b0": partial(TimmFeatures, "efficientnet_b0"),
    "efficientnet_lite0": partial(TimmFeatures, "tf_efficientnet_lite0"),
    "yolov8n": YOLOv8n,
}


def build_backbone(name: str) -> Any:
    """A backbone of random weights by its name in BACKBONES, which is also a Module. Raises ValueError for another."""
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]()


def image_statistics(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Mean and deviation (3, 1, 1) of each colour, by which the images that a backbone takes are normalised."""
    mean, std = getattr(backbone, "mean_std", (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
