"""Backbones of the timm library: MobileNetV3-Small and EfficientNet-B0, with public ImageNet weights.

Sources: MobileNetV3, arXiv 1905.02244; EfficientNet, arXiv 1905.11946. Code and weights: timm (Apache-2.0).
"""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backbones.fast_scnn import DepthwiseConv2d


class TimmFeatures(nn.Module):
    """Feature maps at strides 8, 16 and 32 of a timm model without its classifier, with random weights at first."""

    channels: tuple[int, int, int]
    strides: tuple[int, int, int]

    def __init__(self, name: str) -> None:
        super().__init__()
        body: Any = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
        self.channels = tuple(body.feature_info.channels())
        self.strides = tuple(body.feature_info.reduction())
        self.body: nn.Module = body
        self.url: str = timm.get_pretrained_cfg(name).url  # type: ignore[union-attr, assignment]
        for module in self.body.modules():
            if type(module) is nn.Conv2d and module.groups > 1 and module.stride[0] * module.dilation[0] > 1:
                module.__class__ = DepthwiseConv2d

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps at strides 8, 16, 32; H and W are multiples of 32."""
        return list(self.body(images))

    def load_imagenet(self, file: str | None = None) -> str:
        """Take over weights learnt on ImageNet and return where from.

        file: .safetensors or .pth as timm publishes them; None downloads the file and checks it by its hash.
        Raises ValueError, saying what to do, if that fails or the weights are others.
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
        except (OSError, urllib.error.URLError, RuntimeError) as error:
            raise ValueError(
                f"{source} could not be read ({error}): fetch it elsewhere and give it as --init imagenet:FILE"
            ) from None
        except Exception as error:  # what a file that is no state dict raises depends on the library
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise ValueError(f"{source} holds no weights ({reason})") from None
        missing = self.body.state_dict().keys() - state.keys()
        odd = [k for k, v in self.body.state_dict().items() if k in state and state[k].shape != v.shape]
        if missing or odd:
            raise ValueError(f"{source} holds another network: {len(missing) + len(odd)} weights do not fit")
        self.body.load_state_dict(state, strict=False)
        return source
