"""What a user would pick instead of one network: a torchvision network for each task, run one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from engine.settings.config import OptimConfig
from engine.speed.timing import Figures, Run, drawn_image, measure, summary

REFERENCE_MODELS = {"lraspp": "LR-ASPP", "ssdlite": "SSDLite320", "mobilenet": "MobileNetV3-Small"}
"""Networks by short name."""
DEPLOYED = {"lraspp": 520, "ssdlite": 320, "mobilenet": 224}
"""Side of the image that torchvision publishes each for."""
CLASSES = 21


def build(name: str) -> nn.Module:
    """An untrained torchvision network; its speed does not depend on its weights, with one exception, see below."""
    if name == "lraspp":
        return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    if name == "mobilenet":
        return mobilenet_v3_small(weights=None, num_classes=CLASSES)
    detector: nn.Module = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    # Untrained, every box would be worth keeping. Sure background spares the detector all work after its network.
    for block in detector.head.classification_head.module_list:  # type: ignore[union-attr]
        bias = block[-1].bias
        with torch.no_grad():
            bias.view(-1, CLASSES)[:, 0] = 20.0
    return detector


@torch.no_grad()
def infer(name: str, network: nn.Module, images: Tensor) -> object:
    """Full-size class masks, final boxes, or labels of images (B, 3, S, S)."""
    if name == "lraspp":
        return network(images)["out"].argmax(1)
    if name == "ssdlite":
        return network(list(images))
    return network(images).argmax(1)


def training_step(network: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Callable[[], None]:
    """One step of LR-ASPP: forward, cross-entropy of full-size masks, backward, clipping, AdamW."""
    masks = torch.randint(CLASSES, images.shape[:1] + images.shape[2:], device=images.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-9, fused=True)
    scaler = torch.amp.GradScaler(images.device.type, enabled=dtype == torch.float16)
    network.train()

    def step() -> None:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits = network(images)["out"]
        scaler.scale(F.cross_entropy(logits.float(), masks)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), OptimConfig.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def inference(name: str, device: torch.device, size: int, dtype: torch.dtype | None) -> Run:
    """A function that takes one image of side `size` through a network, to what a user reads."""
    image = drawn_image(size).to(device, memory_format=torch.channels_last)
    network = build(name).to(device).to(memory_format=torch.channels_last).eval()

    def run() -> object:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return infer(name, network, image)

    return run


def time_training(
    device: torch.device, size: int, dtype: torch.dtype | None, batch: int, warmup: int, runs: int
) -> Figures:
    """Time per image of LR-ASPP's training step."""
    images = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    network = build("lraspp").to(device).to(memory_format=torch.channels_last)
    times = measure("training LR-ASPP", training_step(network, images, dtype), device, warmup, runs)
    return summary("train_lraspp_ms_per_image", [t / batch for t in times])
