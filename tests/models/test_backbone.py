from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import backbones
from models.backbones import BACKBONES
from models.backbones.fast_scnn import Bottleneck, DepthwiseConv2d, FastSCNN
from models.criterion import Criterion, LossConfig
from models.neck import FPN
from models.onehead import ModelConfig, OneHead, count_parameters
from tests.models.builders import CLASSES, TINY, images, random_targets

PUBLISHED = 1.11e6
"""Parameters of the whole Fast-SCNN with its classifier, arXiv 1902.04502, table 4."""


def separable_parameters(channels: int) -> int:
    """3x3 depthwise and 1x1 convolution, each with the two vectors of its batch norm."""
    return channels * 9 + 2 * channels + channels * channels + 2 * channels


def test_parameter_count_is_the_published_one() -> None:
    features = count_parameters(FastSCNN())
    assert features == 1_099_248
    # The classifier that is dropped: two separable convolutions, then 1x1 to the 19 classes of Cityscapes.
    classifier = 2 * separable_parameters(128) + 128 * 19 + 19
    assert classifier == 38_547
    assert features + classifier == pytest.approx(PUBLISHED, rel=0.03)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("size", [(160, 160), (320, 512)])
def test_announced_channels_and_strides_are_true(name: str, size: tuple[int, int]) -> None:
    backbone = BACKBONES[name]()
    with torch.no_grad():
        maps = backbone.eval()(images(1, *size))  # type: ignore[attr-defined]
    assert backbone.strides == (8, 16, 32)
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(backbone.channels, backbone.strides)
    ]
    assert all(m.isfinite().all() for m in maps)


def test_every_part_of_fast_scnn_is_used() -> None:
    backbone = FastSCNN().eval()
    sum(m.square().mean() for m in backbone(images(2, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("c_out", "stride", "passes"), [(8, 1, True), (8, 2, False), (12, 1, False)])
def test_bottlenecks_add_their_input_where_shapes_allow(c_out: int, stride: int, passes: bool) -> None:
    block = Bottleneck(8, c_out, stride).eval()
    nn.init.zeros_(block.block[-1][0].weight)  # all that remains is the shortcut
    x = torch.randn(1, 8, 6, 6)
    found = block(x)
    assert found.shape == (1, c_out, 6 // stride, 6 // stride)
    assert torch.equal(found, x) if passes else not found.any()


def test_depthwise_convolutions_stay_in_float32_on_the_cpu() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    x = torch.randn(2, 8, 16, 16)
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


class Stranger(nn.Module):
    """What a user would write: three strided convolutions that know nothing of this repository."""

    channels = (8, 24, 16)
    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 8, 8)
        self.middle = nn.Conv2d(8, 24, 2, 2)
        self.coarse = nn.Conv2d(24, 16, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x).relu()
        middle = self.middle(fine).relu()
        return [fine, middle, self.coarse(middle).relu()]


def test_a_strangers_backbone_needs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "stranger", Stranger)
    torch.manual_seed(0)
    model = OneHead(ModelConfig(backbone="stranger", **TINY), CLASSES)
    outputs = model.train()(images(2))
    losses = Criterion(LossConfig())(outputs, random_targets(["all", "all"]))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_an_unknown_backbone_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet'.*fast_scnn"):
        OneHead(ModelConfig(backbone="resnet"), CLASSES)


def test_neck_brings_all_levels_to_one_width_and_passes_coarse_features_down() -> None:
    torch.manual_seed(0)
    neck = FPN((4, 6, 8), 16).eval()
    features = [torch.randn(1, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4))]
    maps = neck(features)
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 16), (1, 16, 8, 8), (1, 16, 4, 4)]
    changed = neck([*features[:2], features[2] + 1])
    assert all(not torch.equal(a, b) for a, b in zip(maps, changed))
    changed = neck([features[0] + 1, *features[1:]])
    assert [torch.equal(a, b) for a, b in zip(maps, changed)] == [False, True, True]
