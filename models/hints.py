"""Hints: what a network with public weights sees, to be told from every map of the neck.

FitNets, arXiv 1412.6550, on whatever pictures there are: the same view for both and many of them are what counts
(arXiv 2106.05237). Shape suffixes: B batch, D width, C channels of the teacher, H and W of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Hints(nn.Module):
    """Linear readouts, one a map of the neck, that are thrown away after training.

    Args:
        channels: of the teacher's maps.
        dim: width D of the neck's maps.
        levels: how many maps the neck has.
    """

    def __init__(self, channels: Sequence[int], dim: int, levels: int = 3) -> None:
        super().__init__()
        self.readouts = nn.ModuleList(nn.Conv2d(dim, sum(channels), 1) for _ in range(levels))

    def forward(self, maps_BDHW: Sequence[Tensor], taught_BCHW: Sequence[Tensor]) -> Tensor:
        """Share of the variance of the teacher's channels that the readouts miss, mean over levels.

        Every map is to tell all of the teacher's, resized to its grid: the fine one too shall know what deep layers do.
        """
        missed = []
        for readout, own in zip(self.readouts, maps_BDHW, strict=True):
            size = own.shape[-2:]
            resized = [F.interpolate(t.float(), size, mode="bilinear", antialias=True) for t in taught_BCHW]
            meant = F.batch_norm(torch.cat(resized, dim=1), None, None, training=True)  # each channel to variance 1
            missed.append(F.mse_loss(readout(own).float(), meant))
        return torch.stack(missed).mean()
