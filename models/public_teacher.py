"""A public network with ImageNet weights that gives its feature maps, its pooled features and its 1000 logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from models.backbones.imagenet import read_weights

STRIDES = (8, 16, 32)


class TeacherOutputs(NamedTuple):
    """Outputs of a teacher for images: maps (B, c, H/s, W/s) at strides 8, 16, 32, pooled (B, F), logits (B, C)."""

    fine: Tensor
    middle: Tensor
    deep: Tensor
    pooled: Tensor
    logits: Tensor

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three maps, finest first."""
        return self.fine, self.middle, self.deep


class PublicTeacher(nn.Module):
    """A timm classifier in eval mode, without gradients; random weights until `load_imagenet`.

    `channels` are those of the three maps, `features` and `classes` the sizes of pooled features and logits. Raises
    ValueError for a network without maps at strides 8, 16 and 32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm knows no network {name!r}; `timm.list_models(pretrained=True)` names all")
        cfg: Any = timm.get_pretrained_cfg(name)
        body: Any = timm.create_model(name).eval().requires_grad_(False)
        levels = {int(info["reduction"]): i for i, info in enumerate(body.feature_info)}  # the last one of each stride
        if not set(STRIDES) <= set(levels) or not hasattr(body, "forward_intermediates"):
            raise ValueError(f"{name} has no maps at strides 8, 16 and 32; choose a convolutional network")
        self.name, self.url, self.body = name, str(cfg.url), body
        self.levels = [levels[stride] for stride in STRIDES]
        self.channels = tuple(int(body.feature_info[i]["num_chs"]) for i in self.levels)
        self.features, self.classes = int(body.head_hidden_size), int(body.num_classes)
        self.register_buffer("mean", torch.tensor(cfg.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg.std).view(3, 1, 1), persistent=False)

    def load_imagenet(self, file: str | None = None) -> str:
        """Take over public weights from a file, or downloaded; returns where from. Raises ValueError."""
        state, source = read_weights(file, self.url, self.body.state_dict(), self.name)
        self.body.load_state_dict(state)
        return source

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutputs:
        """Images (B, 3, H, W) in 0..1, sides multiples of 32 -> its outputs."""
        last, (fine, middle, deep) = self.maps(images)
        pooled = self.body.forward_head(last, pre_logits=True)
        return TeacherOutputs(fine, middle, deep, pooled, self.body.get_classifier()(pooled))

    @torch.no_grad()
    def maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images as above -> what the classifier pools (B, c, H/32, W/32), and the maps at strides 8, 16, 32."""
        last, maps = self.body.forward_intermediates((images - self.mean) / self.std, indices=self.levels)
        return last, maps

    def to_pool(self, deep: Tensor) -> Tensor:
        """The deepest map (B, c, H/32, W/32) -> what the classifier pools; MobileNets pool the map itself."""
        found: Tensor = self.body.bn2(self.body.conv_head(deep)) if hasattr(self.body, "bn2") else deep
        return found

    @torch.no_grad()
    def evidence(self, last: Tensor) -> Tensor:
        """What the classifier pools -> (B, 1, h, w): how much speaks for any class in each cell."""
        logits = self.body.forward_head(rearrange(last, "b c h w -> (b h w) c 1 1"))
        return rearrange(logits.logsumexp(-1), "(b h w) -> b 1 h w", h=last.shape[2], w=last.shape[3])
