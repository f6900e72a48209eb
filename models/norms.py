"""Batch norms: of a single value, and with statistics that no longer follow the images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.onehead import OneHead


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


DISORDER = "this backbone does not list its layers in the order that they run in (models.backbones.Backbone)"
"""Why norms cannot be taken up by convolutions."""
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


def absorb_statistics(model: OneHead) -> None:
    """Let the filters of a network take up the statistics of its norms; where that changes its maps, nothing is done.

    For training with frozen statistics. Where a filter all but cancels what it sees, that deviation is small (0.03 in
    Fast-SCNN's second convolution). A step of Adam, about as long for every weight, then shifts the channel by a third
    of its deviation. A norm that follows the batch takes the shift out again; a frozen one passes it on to all tasks.
    """
    after = deepcopy(model)
    absorb(after)
    if same_maps(after, model):
        model.load_state_dict(after.state_dict())
    else:
        print(f"note: {DISORDER}; filters do not absorb what frozen norms divide by", file=sys.stderr)


@torch.no_grad()
def absorb(model: nn.Module) -> None:
    """Divide filters by the deviation that the norm behind them divides by, which becomes 1."""
    for conv, norm in normed_convolutions(model):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        deviation = (norm.running_var + norm.eps).sqrt()
        conv.weight /= deviation.view(-1, 1, 1, 1)
        if conv.bias is not None:
            conv.bias /= deviation
        norm.running_mean /= deviation
        norm.running_var.fill_(1.0 - norm.eps)


def normed_convolutions(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions that are followed, among the parts of one module, by a batch norm of their channels."""
    for module in model.modules():
        for conv, norm in pairwise(module.children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and fit(conv, norm):
                yield conv, norm


def fit(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a norm may stand behind a convolution."""
    return conv.out_channels == norm.num_features


@torch.no_grad()
def same_maps(one: OneHead, other: OneHead) -> bool:
    """Whether two networks see the same in a small image of noise, up to rounding: on a CPU, GPUs round float32."""
    one, other = (deepcopy(model).cpu().float().eval() for model in (one, other))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pairs = zip(one.features(image), other.features(image))
    return all(bool((a - b).abs().max() <= 1e-3 * b.abs().max()) for a, b in pairs)
