"""The teacher of stage 0: a backbone with public weights that only answers."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.device import Precision
from engine.errors import UserError
from engine.start import public_weights
from models.backbones import BACKBONES
from models.backbones.timm_features import TimmFeatures

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `export` installs."""


class Teacher:
    """Maps of the backbone NAME or NAME:FILE with its public ImageNet weights.

    In float32 on a CPU it runs in ONNX Runtime, where that is installed: two to three times as fast as in torch.
    Raises UserError when there are no such weights.
    """

    def __init__(self, name: str, device: torch.device, precision: Precision) -> None:
        name, _, file = name.partition(":")
        if name not in BACKBONES:
            raise UserError(
                f"pretrain.teacher: unknown backbone {name!r}: choose one of {', '.join(sorted(BACKBONES))}"
            )
        backbone = BACKBONES[name]()
        print(f"teacher: {public_weights(backbone, name, file, 'pretrain.teacher')}", flush=True)
        assert isinstance(backbone, TimmFeatures)
        self.channels = backbone.channels
        backbone = backbone.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        fast = device.type == "cpu" and precision == "fp32" and all(map(importlib.util.find_spec, PACKAGES))
        self.maps: Callable[[Tensor], list[Tensor]] = RuntimeBackbone(backbone) if fast else backbone

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), normalised by ImageNet's mean and deviation -> maps at strides 8, 16 and 32."""
        return self.maps(images)


class RuntimeBackbone:
    """The maps of a backbone in evaluation mode, to a rounding error those of torch.

    A session is made for every shape of images that comes, which takes seconds: meant for batches of few shapes.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone.eval()
        self.sessions: dict[torch.Size, Any] = {}

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), float32 on the CPU -> maps at strides 8, 16 and 32."""
        if images.shape not in self.sessions:
            self.sessions[images.shape] = self.session(images)
        found = self.sessions[images.shape].run(None, {"images": images.contiguous().numpy()})
        return [torch.from_numpy(value) for value in found]

    def session(self, images: Tensor) -> Any:
        """A session for images of this shape, on as many threads as torch uses."""
        import onnxruntime

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                self.backbone, (images.contiguous(),), input_names=["images"], dynamo=True, verbose=False
            )
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        content = program.model_proto.SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
