"""OneHead: backbone, neck, head. One forward pass gives boxes, masks and the image label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from models.backbones import build_backbone, image_statistics
from models.head import Outputs, Queries, QueryHead
from models.neck import FPN
from models.norms import accept_single_values
from models.postprocess import THRESHOLD


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network."""

    backbone: str = "fast_scnn"
    """Name in models.backbones.BACKBONES."""
    dim: int = 128
    """Width D of neck, tokens and pixel features; a multiple of 8 and of `heads`."""
    heads: int = 4
    """Attention heads a layer."""
    hidden: int = 512
    """Width of the feed-forward part of a layer."""
    layers: int = 3
    """Decoder layers: 2 or 3."""
    points: int = 4
    """Sampled points per head and level around a token's box."""
    queries: int = 60
    """Object queries, so at most this many boxes an image."""


class OneHead(nn.Module):
    """The whole network.

    Args:
        config: its shape.
        classes: class names by task, keys "det", "seg" (background first) and "cls"; index = label.
        input_size: side S of the square input it is deployed at, a multiple of 32.
    """

    threshold: float = THRESHOLD
    """Least score of a box that is shown; every network has its own scale (`scripts.measure_threshold`)."""

    mean: Tensor
    std: Tensor | None
    """What images are divided by; None once the first filters are (models.deploy)."""

    def __init__(self, config: ModelConfig, classes: Mapping[str, Sequence[str]], input_size: int = 512) -> None:
        super().__init__()
        if config.dim % 8 or config.dim % config.heads:
            raise ValueError(f"model.dim {config.dim} must be a multiple of 8 and of model.heads {config.heads}")
        locations = sum((input_size // stride) ** 2 for stride in (8, 16, 32))
        if locations < config.queries:
            raise ValueError(
                f"model.queries {config.queries} is more than the {locations} locations that an input of side "
                f"{input_size} has: lower model.queries or raise data.size"
            )
        self.config = config
        self.classes = {task: tuple(names) for task, names in classes.items()}
        self.input_size = input_size
        self.backbone = build_backbone(config.backbone)
        channels = self.backbone.channels
        self.neck = FPN(channels, config.dim)
        self.head = QueryHead(
            dim=config.dim,
            heads=config.heads,
            hidden=config.hidden,
            layers=config.layers,
            points=config.points,
            queries=config.queries,
            levels=len(channels),
            num_det=len(self.classes["det"]),
            num_seg=len(self.classes["seg"]),
            num_cls=len(self.classes["cls"]),
        )
        accept_single_values(self)
        mean, std = image_statistics(self.backbone)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), 0..1, sides multiples of 32 -> the neck's maps (B, D, H/8, W/8), /16, /32."""
        maps: list[Tensor] = self.neck(self.backbone_maps(images))
        return maps

    def backbone_maps(self, images: Tensor) -> list[Tensor]:
        """Images as above -> the backbone's maps, with channels of its own."""
        if images.shape[-1] % 32 or images.shape[-2] % 32:
            raise ValueError(f"image sides must be multiples of 32, not {tuple(images.shape[-2:])}: resize or pad")
        centred = images - self.mean
        return self.backbone(centred if self.std is None else centred / self.std)

    def forward(
        self, images: Tensor, queries: Queries | None = None, groups: int = 0, denoise: Tensor | None = None
    ) -> Outputs:
        """All outputs for images (B, 3, H, W) in 0..1; arguments and the dict are described at `QueryHead.forward`.

        "backbone_maps" holds the backbone's own maps.
        """
        maps = self.backbone_maps(images)
        outputs: Outputs = self.head(self.neck(maps), queries, groups, denoise)
        return outputs | {"backbone_maps": maps}


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())
