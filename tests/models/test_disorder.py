"""A backbone whose layers are not listed in the order that they run in is used as it is, and a note says so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.absorption import absorb, absorb_statistics, same_maps
from models.backbones import BACKBONES
from models.deploy import fused
from models.onehead import OneHead
from tests.models.builders import images, tiny


class Swapped(nn.Module):
    """Two convolutions, each listed before the norm of the other."""

    channels, strides = (8, 8, 8), (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.conv_a, self.norm_b = nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8)
        self.conv_b, self.norm_a = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.norm_b(self.conv_b(self.norm_a(self.conv_a(images)).relu()))
        return [x, nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(x, 4)]


class Backwards(Swapped):
    """Listed from the end to the beginning, where no norm has the width of the convolution before it."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.conv_b, self.norm_a = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(16)
        self.conv_a, self.norm_b = nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(8)


class Stems(nn.Module):
    """Two convolutions read the image."""

    channels, strides = (8, 8, 8), (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(3, 8, 8, 8)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.one(images) + self.other(images)
        return [x, nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(x, 4)]


def odd(backbone: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> OneHead:
    monkeypatch.setitem(BACKBONES, "odd", backbone)
    return tiny(backbone="odd")


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "notes"), [(Swapped, 1), (Stems, 1), (Backwards, 0)])
def test_it_is_deployed_as_it_computes(
    backbone: type[nn.Module], notes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = odd(backbone, monkeypatch)
    quick = fused(model)
    expected, found = model(images(2)), quick(images(2))
    for name in ("pred_boxes", "pred_logits", "pred_masks", "pred_class"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert capsys.readouterr().err.count("note: this backbone does not list its layers in the order") == notes


def test_its_statistics_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = odd(Swapped, monkeypatch)
    spoilt, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    absorb(spoilt)
    assert not same_maps(spoilt, model)
    absorb_statistics(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().err.count("filters do not absorb what frozen norms divide by") == 1
