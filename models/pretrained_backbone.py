"""The backbone that a run begins with, as stage 0 left it: its maps, and how it names what a region shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbones import Backbone, image_statistics
from models.regions import pool_boxes


class PretrainedBackbone(nn.Module):
    """A backbone in eval mode, without gradients, and the readout by which stage 0 named pictures.

    Args:
        backbone: with the weights of stage 0.
        readout: from the means of its three maps, side by side, to the logits of stage 0's classes; None: it has none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, readout: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.readout = readout
        mean, std = image_statistics(backbone)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in 0..1, sides multiples of 32 -> the backbone's maps."""
        return self.backbone((images - self.mean) / self.std)

    def name(self, maps: Sequence[Tensor], boxes_BT4: Tensor) -> Tensor:
        """Logits (B, T, C) of what boxes (cx, cy, w, h as fractions) show, from a backbone's maps."""
        assert self.readout is not None
        pooled = torch.cat([pool_boxes(m.float(), boxes_BT4) for m in maps], dim=-1)
        logits: Tensor = self.readout(pooled)
        return logits
