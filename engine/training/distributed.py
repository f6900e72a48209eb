"""Batch norm over all processes, so that several processes train as one would."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from models.norms import LoneBatchNorm2d, LoneBatchNormAct2d


class Synchronised(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch, on any device.

    torch's own `SyncBatchNorm` knows GPUs only. Same parameters and buffers as `BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        values = x.to(self.weight.dtype)
        count = values.new_tensor([values.numel() / values.shape[1]])
        total = all_reduce(torch.cat([values.sum((0, 2, 3)), count]))
        n, mean = total[-1], total[:-1] / total[-1]
        # A second round, because mean(x^2) - mean(x)^2 loses half of the digits.
        var = all_reduce((values - mean[:, None, None]).square().sum((0, 2, 3))) / n
        self.update(mean.detach(), (var * n / (n - 1)).detach())
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def update(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics."""
        momentum = 0.1 if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            if running is not None:
                running.lerp_(value, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class SyncBatchNorm2d(Synchronised, LoneBatchNorm2d):
    """torch's."""


class SyncBatchNormAct2d(Synchronised, LoneBatchNormAct2d):
    """timm's, with an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        normed = super().forward(x)
        return self.act(self.drop(normed)) if self.training else normed  # type: ignore[no-any-return]


SYNCHRONISED: dict[type, type] = {LoneBatchNorm2d: SyncBatchNorm2d, LoneBatchNormAct2d: SyncBatchNormAct2d}
"""What takes the place of batch norms."""


def synchronise(model: nn.Module) -> None:
    """Let every batch norm of `model` share its statistics between processes, in place."""
    for module in model.modules():
        module.__class__ = SYNCHRONISED.get(type(module), type(module))
