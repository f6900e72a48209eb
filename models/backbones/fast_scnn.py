"""Fast-SCNN without its classifier: three feature maps at strides 8, 16 and 32.

Source: Poudel, Liwicki, Cipolla, "Fast-SCNN: Fast Semantic Segmentation Network", arXiv 1902.04502, table 1. The layer
table is the published one. What differs: a ReLU between the depthwise and the 1x1 convolution of a separable one, which
section 3.2.1 leaves out, and where features are read: stride 8 after the feature fusion module, stride 16 after the
first bottleneck group, stride 32 after the pyramid pooling.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = {
    "downsample.0": "learning_to_downsample.conv",
    "downsample.1": "learning_to_downsample.dsconv1",
    "downsample.2": "learning_to_downsample.dsconv2",
    "stage16": "global_feature_extractor.bottleneck1",
    "stage32.0": "global_feature_extractor.bottleneck2",
    "stage32.1": "global_feature_extractor.bottleneck3",
    "pooling": "global_feature_extractor.ppm",
    "fusion": "feature_fusion",
}
"""Parts of `FastSCNN`, and the rows of the paper's table 1 that they are."""


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel; on the CPU always in float32.

    oneDNN's bfloat16 backward of a strided, dilated or 5x5 one takes two to five times as long as float32's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride)."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


def slow_in_bfloat16(kernel: int, stride: int, dilation: int) -> bool:
    """Whether a depthwise convolution is learnt faster in float32 on a CPU."""
    return kernel > 3 or stride * dilation > 1


def conv(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, *, dilation: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution + batch norm (+ ReLU) that keeps the size up to its stride."""
    pad = dilation * (kernel // 2)
    kind = DepthwiseConv2d if groups > 1 and slow_in_bfloat16(kernel, stride, dilation) else nn.Conv2d
    layers: list[nn.Module] = [
        kind(c_in, c_out, kernel, stride, pad, dilation, groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def depthwise_separable(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution per channel, then 1x1 across channels, each with batch norm and ReLU."""
    return nn.Sequential(conv(c_in, c_in, 3, stride, groups=c_in), conv(c_in, c_out))


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 expansion, 3x3 per channel, 1x1 linear. Source: MobileNetV2, arXiv 1801.04381."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.block = nn.Sequential(
            conv(c_in, hidden), conv(hidden, hidden, 3, stride, groups=hidden), conv(hidden, c_out, relu=False)
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
        y: Tensor = self.block(x)
        return x + y if self.residual else y


def bottlenecks(c_in: int, c_out: int, stride: int, count: int) -> nn.Sequential:
    """`count` bottlenecks, the first of which changes channels and stride."""
    rest = [Bottleneck(c_out, c_out, 1) for _ in range(count - 1)]
    return nn.Sequential(Bottleneck(c_in, c_out, stride), *rest)


class PyramidPooling(nn.Module):
    """Adds context pooled over 1, 2, 3 and 6 cells a side. Source: PSPNet, arXiv 1612.01105."""

    def __init__(self, channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = bins
        part = channels // len(bins)
        self.reduce = nn.ModuleList(conv(channels, part) for _ in bins)
        self.project = conv(channels + part * len(bins), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        pooled = [
            F.interpolate(reduce(F.adaptive_avg_pool2d(x, n)), size, mode="bilinear")
            for n, reduce in zip(self.bins, self.reduce)
        ]
        fused: Tensor = self.project(torch.cat([x, *pooled], dim=1))
        return fused


class FeatureFusion(nn.Module):
    """Adds upsampled deep features to the shallow ones of the downsampling path (paper, table 3)."""

    def __init__(self, c_shallow: int, c_deep: int, c_out: int, scale: int = 4) -> None:
        super().__init__()
        self.shallow = conv(c_shallow, c_out, relu=False)
        self.deep = nn.Sequential(
            conv(c_deep, c_deep, 3, dilation=scale, groups=c_deep), conv(c_deep, c_out, relu=False)
        )

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """(B, c_shallow, H, W) and (B, c_deep, H / 4, W / 4) -> (B, c_out, H, W)."""
        deep = F.interpolate(deep, shallow.shape[-2:], mode="bilinear")
        return F.relu(self.shallow(shallow) + self.deep(deep))


class FastSCNN(nn.Module):
    """Fast-SCNN features; `channels` and `strides` describe what `forward` returns."""

    channels = (128, 64, 128)
    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            conv(3, 32, 3, 2), depthwise_separable(32, 48, 2), depthwise_separable(48, 64, 2)
        )
        self.stage16 = bottlenecks(64, 64, 2, 3)
        self.stage32 = nn.Sequential(bottlenecks(64, 96, 2, 3), bottlenecks(96, 128, 1, 3))
        self.pooling = PyramidPooling(128)
        self.fusion = FeatureFusion(64, 128, 128)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features at strides 8, 16, 32 with `channels`; H and W are multiples of 32."""
        shallow = self.downsample(images)
        middle = self.stage16(shallow)
        deep = self.pooling(self.stage32(middle))
        return [self.fusion(shallow, deep), middle, deep]


def published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `FastSCNN` under the layer names of the paper."""
    return renamed(weights, LAYERS)


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the layer names of the paper -> `FastSCNN.load_state_dict`."""
    return renamed(weights, {published: own for own, published in LAYERS.items()})


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights whose names begin otherwise. Raises KeyError for a name that begins like none of `names`."""
    found = {}
    for name, weight in weights.items():
        start = next((old for old in names if name.startswith(f"{old}.")), None)
        if start is None:
            raise KeyError(f"{name} belongs to none of {', '.join(names)}")
        found[names[start] + name.removeprefix(start)] = weight
    return found
