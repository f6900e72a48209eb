"""Batch norms: of a single value, and with statistics that no longer follow the images."""

from __future__ import annotations

from timm.layers import BatchNormAct2d
from torch import Tensor, nn


class LoneValue:
    """A batch norm that normalises a single value a channel, which has no deviation, by the running statistics.

    One image whose map is 1 x 1 in training: torch refuses it, and a norm by its own mean would leave nothing of it.
    """

    training: bool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        own = super().forward  # type: ignore[misc]
        if not self.training or x.numel() > x.shape[1]:
            return own(x)  # type: ignore[no-any-return]
        self.training = False
        try:
            return own(x)  # type: ignore[no-any-return]
        finally:
            self.training = True


class LoneBatchNorm2d(LoneValue, nn.BatchNorm2d):
    """torch's."""


class LoneBatchNormAct2d(LoneValue, BatchNormAct2d):
    """timm's, with an activation behind it."""


LONE: dict[type, type] = {nn.BatchNorm2d: LoneBatchNorm2d, BatchNormAct2d: LoneBatchNormAct2d}
"""What takes the place of batch norms."""


def accept_single_values(model: nn.Module) -> None:
    """Let the batch norms of a network take single values in training."""
    for module in model.modules():
        module.__class__ = LONE.get(type(module), type(module))


def freeze_statistics(model: nn.Module) -> None:
    """Put batch norms into eval mode: running statistics stay, to the bit, as they are; weights go on learning."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
