"""Convolutions that take up the norms behind them: which do, and whether the network still computes the same.

A training with frozen statistics absorbs deviations; a copy for use (models.deploy) folds whole norms.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn

from models.onehead import OneHead

DISORDER = "this backbone does not list its layers in the order that they run in (models.backbones.Backbone)"
"""Why norms cannot be taken up by convolutions."""


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
