"""Faster copies of a trained model that compute the same."""

from __future__ import annotations

import sys
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.absorption import DISORDER, fit, same_maps
from models.head import Outputs
from models.onehead import OneHead
from models.postprocess import best_pairs, class_masks
from models.sampling import RowTable


class Final(NamedTuple):
    """What a user reads, then what evaluation reads: `pred_*` as in `models.head.QueryHead.forward`.

    boxes (B, k, 4), x1 y1 x2 y2 as fractions, scores and labels (B, k), the surest first; mask int64 (B, S, S); label
    int64 (B,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask: Tensor
    label: Tensor
    pred_logits: Tensor
    pred_boxes: Tensor
    pred_masks: Tensor
    pred_class: Tensor


class LastLayer(nn.Module):
    """A fused copy of a model with its face, for use: the outputs of the last layer alone. Not for training."""

    def __init__(self, model: OneHead) -> None:
        super().__init__()
        self.network, self.classes = fused(model), model.classes
        self.input_size, self.threshold = model.input_size, model.threshold
        self.eval()

    @property
    def mean(self) -> Tensor:
        """As `OneHead.mean`, on the device of the weights."""
        return self.network.mean

    def forward(self, images: Tensor) -> Outputs:
        """Images (B, 3, S, S) in 0..1 -> the raw outputs `pred_*` of `OneHead`, equal up to rounding."""
        return self.network.head.final(self.network.features(images))


class Deployed(nn.Module):
    """The same with its post-processing: one graph from the image to what is read."""

    def __init__(self, model: OneHead, top_k: int = 100) -> None:
        super().__init__()
        self.model, self.top_k = LastLayer(model), top_k

    def forward(self, images: Tensor) -> Final:
        """Images (B, 3, S, S) in 0..1 -> boxes, masks, labels and raw outputs."""
        out = self.model(images)
        scores, labels, corners = best_pairs(out, self.top_k)
        masks = class_masks(out["pred_masks"].float(), self.model.network.backbone.strides[0])
        raw = {name: out[name] for name in Final._fields if name in out}
        chances = out["pred_class"]
        label = chances.argmax(1) if chances.shape[1] else chances.new_zeros(len(chances), dtype=torch.long)
        return Final(corners, scores, labels, masks, label, **raw)


def fused(model: OneHead) -> OneHead:
    """A copy in eval mode; norms are folded into the convolutions beside them, images' too. Not for training.

    Where that would change what the network sees, they are left as they are.
    """
    copy = deepcopy(model).eval()
    copy.head.sampled = RowTable
    folded = deepcopy(copy)
    fold(folded)
    if same_maps(folded, copy):
        return folded
    print(f"note: {DISORDER}; the network is used as it is", file=sys.stderr)
    return copy


def fold(model: OneHead) -> None:
    """Fold norms in eval mode into the convolutions before them, the images' deviation into the first of 3 inputs."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] == 3), None)
    if model.std is not None and first is not None:
        first.weight.data /= model.std
        model.std = None
    for block in model.modules():
        for (here, conv), (behind, norm) in pairwise(block.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and fit(conv, norm):
                setattr(block, here, fuse_conv_bn_eval(conv, norm))
                setattr(block, behind, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
