"""Hints: the loss is the share of variance missed, and reaches what shall learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.hints import Hints


def maps(channels: tuple[int, ...], seed: int) -> list[Tensor]:
    """One map a stride of an image of 64 px, two images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, 64 // s, 64 // s, generator=generator) * 3 + 1 for c, s in zip(channels, (8, 16, 32))]


def test_what_tells_nothing_misses_all_the_variance_and_what_tells_all_misses_none() -> None:
    hints = Hints([4, 4, 4], 12)
    for readout in hints.readouts:
        torch.nn.init.zeros_(readout.weight)
        torch.nn.init.zeros_(readout.bias)
    assert hints(maps((12, 12, 12), 0), maps((4, 4, 4), 1)).item() == pytest.approx(1.0, abs=1e-3)
    one = [torch.randn(2, 4, 8, 8) * 3 + 1] * 3  # one grid throughout: nothing is lost by resizing
    standard = torch.cat([(m - m.mean((0, 2, 3), keepdim=True)) / m.var((0, 2, 3), False, True).sqrt() for m in one], 1)
    for readout in hints.readouts:
        readout.weight.data.copy_(torch.eye(12)[..., None, None])
    assert hints([standard] * 3, one).item() == pytest.approx(0.0, abs=1e-5)


def test_the_gradient_reaches_every_map_and_readout_and_not_the_teacher() -> None:
    hints = Hints([4, 6, 8], 16)
    own = [m.requires_grad_() for m in maps((16, 16, 16), 0)]
    taught = maps((4, 6, 8), 1)
    hints(own, taught).backward()
    assert all(m.grad is not None and m.grad.any() for m in own)
    assert all(p.grad is not None and p.grad.any() for p in hints.parameters())
    assert sum(p.numel() for p in hints.parameters()) == 3 * (16 + 1) * (4 + 6 + 8)
