"""The backbone that a run begins with: its maps, and how what it comes from names what a region shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from models.backbones import Backbone, image_statistics
from models.public_teacher import PublicTeacher
from models.regions import pool_boxes


class PooledReadout(nn.Module):
    """How stage 0 names a region: a linear layer on the means of the backbone's three maps over it, side by side."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, maps: Sequence[Tensor], boxes_BT4: Tensor) -> Tensor:
        """Maps and boxes (cx, cy, w, h as fractions) -> logits (B, T, C)."""
        logits: Tensor = self.linear(torch.cat([pool_boxes(m.float(), boxes_BT4) for m in maps], dim=-1))
        return logits


class ClassifierReadout(nn.Module):
    """How a public network names a region: as it names a picture, with what it pools taken over the region alone."""

    def __init__(self, network: PublicTeacher) -> None:
        super().__init__()
        self.network = network

    def forward(self, maps: Sequence[Tensor], boxes_BT4: Tensor) -> Tensor:
        """Maps of the network's own backbone and boxes (cx, cy, w, h as fractions) -> logits (B, T, C)."""
        pooled = pool_boxes(self.network.to_pool(maps[-1].float()), boxes_BT4)
        logits: Tensor = self.network.body.forward_head(rearrange(pooled, "b t c -> (b t) c 1 1"))
        return rearrange(logits, "(b t) c -> b t c", b=len(pooled))


class PretrainedBackbone(nn.Module):
    """A backbone in eval mode, without gradients, and the readout by which it named pictures.

    Args:
        backbone: with the weights that the run begins with.
        readout: from its maps and boxes to logits of the classes that it has learnt; None: it has none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, readout: PooledReadout | ClassifierReadout | None = None) -> None:
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
        logits: Tensor = self.readout(maps, boxes_BT4)
        return logits
