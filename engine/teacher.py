"""The teacher of stage 0: a backbone with public weights that only answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.device import Precision
from engine.errors import UserError
from engine.onnx_runtime import has_packages, open_session, to_onnx
from engine.start import public_weights
from models.backbones import BACKBONES
from models.backbones.timm_features import TimmFeatures


class Teacher:
    """Maps of the backbone NAME or NAME:FILE with its public ImageNet weights.

    In float32 on a CPU it runs in ONNX Runtime, if that is installed, where depthwise layers are faster.
    Raises UserError when there are no such weights.
    """

    def __init__(self, name: str, device: torch.device, precision: Precision) -> None:
        name, _, file = name.partition(":")
        if name not in BACKBONES:
            raise UserError(
                f"pretrain.teacher: unknown backbone {name!r}: choose one of {', '.join(sorted(BACKBONES))}"
            )
        backbone = BACKBONES[name]()
        print(f"teacher: {public_weights(backbone, name, file, f'pretrain.teacher {name}')}", flush=True)
        assert isinstance(backbone, TimmFeatures)
        self.channels = backbone.channels
        backbone = backbone.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        fast = device.type == "cpu" and precision == "fp32" and has_packages()
        print(f"teacher: answers by {'ONNX Runtime' if fast else 'torch'}", flush=True)
        self.backbone: Callable[[Tensor], list[Tensor]] = RuntimeBackbone(backbone) if fast else backbone

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), normalised by ImageNet's mean and deviation -> maps at strides 8, 16 and 32."""
        return self.backbone(images)


class RuntimeBackbone:
    """The maps of a frozen backbone by ONNX Runtime, those of torch but for rounding.

    It keeps the session for the shape of images that came last; making one takes seconds.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.shape: torch.Size | None = None
        self.session: Any = None

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), float32 on the CPU -> maps at strides 8, 16 and 32."""
        if images.shape != self.shape:
            images = images.contiguous()
            self.session = open_session(
                to_onnx(self.backbone, images, input_names=["images"]).SerializeToString(), torch.get_num_threads()
            )
            self.shape = images.shape
        return [torch.from_numpy(value) for value in self.session.run(None, {"images": images.contiguous().numpy()})]
