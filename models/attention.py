"""One decoder layer: tokens look at each other, at the whole image, and at sampled points around their box.

Shape suffixes: B batch, T tokens, M memory tokens, D width, H heads, E = D / H, L levels, P points, G groups; `levels`
are the maps as they are sampled.
"""

from __future__ import annotations

import math

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from models.sampling import GridMaps, RowTable

LAYER_SCALE = 0.1
"""Start of the residual scales: an untrained decoder passes its input tokens through (CaiT, arXiv 2103.17239)."""


def box_encoding(boxes: Tensor, dim: int) -> Tensor:
    """Sine encoding (..., dim) of boxes (..., 4); `dim` is a multiple of 8. Not learnt.

    Every token has a box (an object query its reference, a memory token its cell, a class query the whole image),
    so one encoding serves all. Source: DAB-DETR, arXiv 2201.12329, section 4.2.
    """
    bands = dim // 8  # from two image sides a wave down to a sixteenth of one
    frequency = 2 * math.pi * torch.logspace(-1, 4, bands, base=2.0, device=boxes.device)
    angle = boxes.float()[..., None] * frequency
    return rearrange(torch.cat([angle.sin(), angle.cos()], dim=-1), "... side wave -> ... (side wave)")


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of one group."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(dim, 2 * dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, pos_BTD: Tensor, groups: int) -> Tensor:
        """Return (B, T, D); with `groups` > 1 the tokens are G runs of T / G that do not see each other."""
        q, k = self.qk(x_BTD + pos_BTD).chunk(2, dim=-1)
        split = "b (g t) (h e) -> b g h t e"
        q, k, v = (rearrange(t, split, g=groups, h=self.heads) for t in (q, k, self.v(x_BTD)))
        out: Tensor = self.out(rearrange(attend(q, k, v), "b g h t e -> b (g t) (h e)"))
        return out


class CrossAttention(nn.Module):
    """Reads the image in two ways at once: all memory tokens, and a few points around the token's own box.

    The points fall on all three levels, down to stride 8, so that small objects are seen at their own resolution.
    Source: Deformable DETR, arXiv 2010.04159, section 4.1, without its value projection: the maps are the values.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.out = nn.Linear(2 * dim, dim)
        self._start_on_a_ring()

    def _start_on_a_ring(self) -> None:
        """Heads start in different directions, points at growing distance, up to the box's edge."""
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        radius = torch.arange(self.points) / max(1, self.points - 1)
        grid = einsum(ring, radius, "h xy, p -> h p xy")
        with torch.no_grad():
            self.offsets.bias.copy_(repeat(grid, "h p xy -> (h l p xy)", l=self.levels))

    def forward(
        self,
        x_BTD: Tensor,
        pos_BTD: Tensor,
        box_BT4: Tensor,
        memory_BMD: Tensor,
        memory_pos_MD: Tensor,
        levels: GridMaps | RowTable,
    ) -> Tensor:
        """Return (B, T, D)."""
        query = x_BTD + pos_BTD
        weight_k, weight_v = self.kv.weight.chunk(2)
        bias_k, bias_v = self.kv.bias.chunk(2)
        k = F.linear(memory_BMD + memory_pos_MD, weight_k, bias_k)
        v = F.linear(memory_BMD, weight_v, bias_v)
        q, k, v = (rearrange(t, "b t (h e) -> b h t e", h=self.heads) for t in (self.q(query), k, v))
        everywhere = rearrange(attend(q, k, v), "b h t e -> b t (h e)")
        nearby = self.sample(query, box_BT4, levels).to(everywhere.dtype)
        out: Tensor = self.out(torch.cat([everywhere, nearby], dim=-1))
        return out

    def sample(self, query_BTD: Tensor, box_BT4: Tensor, levels: GridMaps | RowTable) -> Tensor:
        """Weighted mean (B, T, D) of the maps at learnt points around each token's box, placed in float32."""
        H, L = self.heads, self.levels
        offset_BT2S = rearrange(self.offsets(query_BTD).float(), "b t (s xy) -> b t xy s", xy=2)
        weight = rearrange(self.weights(query_BTD).float(), "b t (h s) -> b t h s", h=H).softmax(-1)
        centre, size = box_BT4[..., None].split(2, dim=2)
        points = centre + offset_BT2S * (size / 2)
        points = rearrange(points, "b t xy (h l p) -> b t xy h l p", h=H, l=L)
        return levels.mean(points, rearrange(weight, "b t h (l p) -> b t h l p", l=L))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; pre-norm with small residual scales."""

    def __init__(self, dim: int, heads: int, hidden: int, levels: int, points: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((dim,), LAYER_SCALE)) for _ in range(3))
        self.self_attention = SelfAttention(dim, heads)
        self.cross_attention = CrossAttention(dim, heads, levels, points)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self,
        x_BTD: Tensor,
        box_BT4: Tensor,
        memory_BMD: Tensor,
        memory_pos_MD: Tensor,
        levels: GridMaps | RowTable,
        groups: int = 1,
    ) -> Tensor:
        """Return tokens (B, T, D) after one round of looking around; boxes are only read."""
        pos = box_encoding(box_BT4, x_BTD.shape[-1])
        x = x_BTD + self.scales[0] * self.self_attention(self.norms[0](x_BTD), pos, groups)
        x = x + self.scales[1] * self.cross_attention(self.norms[1](x), pos, box_BT4, memory_BMD, memory_pos_MD, levels)
        return x + self.scales[2] * self.feed_forward(self.norms[2](x))


def attend(q_TE: Tensor, k_ME: Tensor, v_ME: Tensor) -> Tensor:
    """Softmax attention (..., T, E), written out: the fused CPU kernel is twice as slow at these sizes."""
    weights = (q_TE * q_TE.shape[-1] ** -0.5 @ k_ME.mT).softmax(-1)
    return weights.to(v_ME.dtype) @ v_ME
