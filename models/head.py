"""The one head: three decoder layers over every query, and one projection that reads any token.

Shape suffixes: B batch, N object queries, K segmentation classes, P locations (cells of all levels), M memory tokens
(locations of strides 16 and 32), T tokens, D width, G groups.

    tokens = [class token | N object queries | K class queries]  -> decoder layers -> projection
    projection row blocks: box 4 | conf 1 | C_det | C_cls | present K | mask embedding D
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import DecoderLayer, box_encoding
from models.boxes import constant, grid_references, refine
from models.locations import CELLS_PER_REFERENCE, nearest_locations, peak_scores
from models.sampling import GridMaps, RowTable

CONF_PRIOR = -4.6
"""Starting bias of `conf`: 1 % of tokens hold an object (focal loss, arXiv 1708.02002, section 4.1)."""
BLOCKS = ("box", "conf", "det", "cls", "present", "mask")
"""Rows of the projection, in this order."""

Outputs = dict[str, Any]
"""Predictions by name; see `QueryHead.forward`."""
READ = {"seg": ("pred_masks",), "cls": ("pred_class",), "det": ("pred_logits", "pred_boxes")}
"""The outputs that the scores of each task read."""


@dataclass
class Queries:
    """Object queries as (where to start, what to start from).

    index: int64 (B, N), location that gives the content and whose cell predicted boxes are relative to;
    boxes: float32 (B, N, 4), where to look first; groups: the queries are this many runs that do not see each other.
    """

    index: Tensor
    boxes: Tensor
    groups: int = 1


@dataclass
class Memory:
    """What the tokens read, and where objects are looked for first.

    locations_BPD, boxes_P4: the cells of all levels, finest first, with their reference boxes; tokens_BMD, encoding_MD:
    the coarse ones among them, which are few enough to attend to; levels: all maps, for sampling.
    """

    locations_BPD: Tensor
    boxes_P4: Tensor
    tokens_BMD: Tensor
    encoding_MD: Tensor
    levels: GridMaps | RowTable


class QueryHead(nn.Module):
    """Decoder layers and one projection; nothing else is learnt but the class queries' starting values."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        layers: int,
        points: int,
        queries: int,
        levels: int,
        num_det: int,
        num_seg: int,
        num_cls: int,
    ) -> None:
        super().__init__()
        if layers not in (2, 3):
            raise ValueError(f"a head has 2 or 3 layers, not {layers}: set model.layers to 2 or 3")
        self.num_queries = queries
        self.sampled: type[GridMaps | RowTable] = GridMaps
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, levels, points) for _ in range(layers))
        self.class_queries = nn.Parameter(torch.randn(num_seg, dim))
        self.rows = dict(zip(BLOCKS, (4, 1, num_det, num_cls, num_seg, dim)))
        self.projection = nn.Linear(dim, sum(self.rows.values()))
        self._init_projection()

    def _init_projection(self) -> None:
        nn.init.normal_(self.projection.weight, std=0.01)
        nn.init.zeros_(self.projection.bias)
        with torch.no_grad():
            self.projection.bias[4] = CONF_PRIOR
            nn.init.orthogonal_(self.projection.weight[-self.rows["mask"] :])

    def block(self, *names: str) -> slice:
        """Rows of the projection that hold the named blocks, which lie side by side."""
        blocks = list(self.rows)
        start = sum(self.rows[b] for b in blocks[: blocks.index(names[0])])
        return slice(start, start + sum(self.rows[n] for n in names))

    def project(self, tokens: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Read the named blocks of the projection, which lie side by side, from tokens (..., D)."""
        rows, sizes = self.block(*names), [self.rows[n] for n in names]
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return F.linear(tokens, self.projection.weight[rows], self.projection.bias[rows]).split(sizes, dim=-1)

    @torch.no_grad()
    def adopt_rows(self, other: QueryHead, same: Collection[str]) -> list[str]:
        """Take over another head's projection and class queries, but for tasks whose classes are not the `same`.

        Rows of new classes stay as they are; new class queries are drawn like those that the other head has learnt.
        Returns the tasks that start fresh.
        """
        named = {"det": "det", "cls": "cls", "present": "seg"}
        for name in (block for block in BLOCKS if named.get(block) in (None, *same)):
            for own, theirs in zip(self.projection.parameters(), other.projection.parameters()):
                own[self.block(name)] = theirs[other.block(name)]
        learnt = other.class_queries
        if "seg" in same:
            self.class_queries.copy_(learnt)
        elif len(learnt) > 1:
            self.class_queries.copy_(learnt.mean(0) + learnt.std(0) * torch.randn_like(self.class_queries))
        return [task for task in ("seg", "det", "cls") if task not in same]

    def read_objects(self, tokens: Tensor, references: Tensor) -> Outputs:
        """Object predictions of tokens (B, N, D) relative to boxes (B, N, 4) or (N, 4).

        Each class has its own sigmoid; "conf" is the part of the logit that all share.
        """
        delta, conf, classes = self.project(tokens, "box", "conf", "det")
        return {"pred_boxes": refine(delta.float(), references), "pred_logits": conf + classes}

    def read_masks(self, tokens_BKD: Tensor, token_BD: Tensor, pix_BDHW: Tensor) -> Tensor:
        """Segmentation logits (B, K, H, W): mask embeddings times pixel features, plus what the class token expects.

        The second term is one number a class: a linear readout of pixels gains much from the means of the maps.
        """
        (embedding,) = self.project(tokens_BKD, "mask")
        (present,) = self.project(token_BD, "present")
        pixels = rearrange(pix_BDHW, "b d h w -> b d (h w)")
        masks = rearrange(embedding * embedding.shape[-1] ** -0.5 @ pixels, "b k (h w) -> b k h w", h=pix_BDHW.shape[2])
        return masks + rearrange(present, "b k -> b k 1 1")

    def read_class(self, token_BD: Tensor) -> Tensor:
        """Image logits (B, C_cls)."""
        return self.project(token_BD, "cls")[0]

    def build_memory(self, maps: list[Tensor]) -> Memory:
        """Flatten the levels: all into locations (B, P, D), all but the finest into memory tokens (B, M, D)."""
        locations = torch.cat([rearrange(m, "b d h w -> b (h w) d") for m in maps], dim=1)
        boxes = torch.cat([grid_references(m.shape[2], m.shape[3], CELLS_PER_REFERENCE, m.device) for m in maps])
        finest = maps[0].shape[2] * maps[0].shape[3]
        encoding = box_encoding(boxes[finest:], locations.shape[-1])
        return Memory(locations, boxes, locations[:, finest:], encoding, self.sampled(maps, locations))

    def select(self, dense: Outputs, score_BP: Tensor) -> Queries:
        """The locations of the highest scores become the object queries (RT-DETR, arXiv 2304.08069, 4.3)."""
        index = score_BP.topk(self.num_queries, dim=1).indices
        return Queries(index, pick(dense["pred_boxes"], index).detach())

    def extra_queries(
        self, dense: Outputs, score_BP: Tensor, sizes: list[tuple[int, int]], groups: int, denoise: Tensor | None
    ) -> Queries | None:
        """Training-only queries: `groups` runs that share out a wider selection, then the denoising boxes.

        Group matching gives each object several matched queries (Group DETR, arXiv 2207.13085); denoising queries start
        from noised annotated boxes (DN-DETR, arXiv 2203.01305), their content from the location nearest to the box.
        `sizes`: (height, width) of the maps.
        """
        index, boxes, n = [], [], self.num_queries
        if groups:
            ranked = score_BP.topk(min(groups * n, score_BP.shape[1]), dim=1).indices
            rank = torch.arange(groups * n, device=ranked.device) % ranked.shape[1]
            rank = rearrange(rank, "(n g) -> (g n)", g=groups)
            index.append(ranked[:, rank])
            boxes.append(pick(dense["pred_boxes"], index[0]).detach())
        if denoise is not None:
            index.append(nearest_locations(denoise, sizes))
            boxes.append(denoise)
        if not index:
            return None
        return Queries(torch.cat(index, dim=1), torch.cat(boxes, dim=1), sum(i.shape[1] for i in index) // n)

    def forward(
        self,
        maps: list[Tensor],
        queries: Queries | None = None,
        groups: int = 0,
        denoise: Tensor | None = None,
    ) -> Outputs:
        """All three outputs from pyramid maps (B, D, H_i, W_i) at strides 8, 16, 32.

        Args:
            maps: the neck's output, finest first.
            queries: object queries to use instead of the head's own selection (a student on its teacher's selection).
            groups: additional runs of N object queries for one-to-many matching, in training.
            denoise: noised boxes (B, R * N, 4) as R further runs, in training. Nothing deployed sees either.

        Returns a dict: pred_logits (B, N, C_det), of each class by itself, pred_boxes (B, N, 4), pred_masks
        (B, K, H/8, W/8), pred_class (B, C_cls) of the last layer; "aux_outputs": the same for the earlier layers and,
        first, for the tokens before any layer; "dense": object predictions of all P locations with their "references"
        (P, 4); "queries": the selection; "maps": the neck's; "extra_outputs": object predictions of training-only runs
        per layer, if there are any.
        """
        memory = self.build_memory(maps)
        dense = {**self.read_objects(memory.locations_BPD, memory.boxes_P4), "references": memory.boxes_P4}
        scores = peak_scores(dense["pred_logits"], maps)
        queries = queries or self.select(dense, scores)
        pooled = memory.tokens_BMD.mean(1)
        class_tokens = self.class_tokens(maps[0])
        masks = self.read_masks(class_tokens, pooled, maps[0])
        start = {"pred_masks": masks, "pred_class": self.read_class(pooled)}
        tokens = self.tokens(pooled, queries, class_tokens, memory)
        outputs = [self.read(x, found, maps[0]) for x, found in self.decode(tokens, 1, queries, memory)]
        aux = [start, *outputs[:-1]]
        result = {**outputs[-1], "aux_outputs": aux, "dense": dense, "queries": queries, "maps": maps}
        extra = self.extra_queries(dense, scores, [(m.shape[-2], m.shape[-1]) for m in maps], groups, denoise)
        if extra is not None:
            objects = pick(memory.locations_BPD, extra.index)
            result["extra_outputs"] = [found for _, found in self.decode(objects, 0, extra, memory)]
        return result

    def final(self, maps: list[Tensor]) -> Outputs:
        """The last layer's outputs of `forward` alone, for use: earlier ones and most locations are never read."""
        memory = self.build_memory(maps)
        conf, classes = self.project(memory.locations_BPD, "conf", "det")
        index = peak_scores(conf + classes, maps).topk(self.num_queries, dim=1).indices
        (delta,) = self.project(pick(memory.locations_BPD, index), "box")
        queries = Queries(index, refine(delta.float(), memory.boxes_P4[index]))
        tokens = self.tokens(memory.tokens_BMD.mean(1), queries, self.class_tokens(maps[0]), memory)
        *_, (x, found) = self.decode(tokens, 1, queries, memory)
        return self.read(x, found, maps[0])

    def class_tokens(self, like: Tensor) -> Tensor:
        """The class queries (B, K, D) of every image of the batch, in the type of `like`."""
        return repeat(self.class_queries.to(like.dtype), "k d -> b k d", b=like.shape[0])

    def tokens(self, pooled_BD: Tensor, queries: Queries, class_BKD: Tensor, memory: Memory) -> Tensor:
        """All tokens (B, 1 + N + K, D) before any layer; an object query starts as its location."""
        return torch.cat([pooled_BD[:, None], pick(memory.locations_BPD, queries.index), class_BKD], dim=1)

    def decode(self, x_BTD: Tensor, first: int, queries: Queries, memory: Memory) -> Iterator[tuple[Tensor, Outputs]]:
        """Run tokens through the layers; yield after each all tokens and the object outputs, from `first` on.

        Object queries look around the box that the layer before predicted, all other tokens at the whole image. What
        is predicted stays relative to the query's own cell, so that the one projection means the same before and after
        every layer.
        """
        n = queries.index.shape[1]
        whole = constant(x_BTD, 0.5, 0.5, 1.0, 1.0)
        image = repeat(whole, "box -> b t box", b=x_BTD.shape[0], t=x_BTD.shape[1] - n)
        boxes, cells = queries.boxes, memory.boxes_P4[queries.index]
        for layer in self.layers:
            box = torch.cat([image[:, :first], boxes, image[:, first:]], dim=1)
            x_BTD = layer(x_BTD, box, memory.tokens_BMD, memory.encoding_MD, memory.levels, queries.groups)
            found = self.read_objects(x_BTD[:, first : first + n], cells)
            yield x_BTD, found
            boxes = found["pred_boxes"].detach()

    def read(self, x_BTD: Tensor, found: Outputs, pix_BDHW: Tensor) -> Outputs:
        """Add the outputs of the class token and the class queries to those of the object queries."""
        masks = self.read_masks(x_BTD[:, 1 + found["pred_boxes"].shape[1] :], x_BTD[:, 0], pix_BDHW)
        return {**found, "pred_class": self.read_class(x_BTD[:, 0]), "pred_masks": masks}


def pick(values_BPX: Tensor, index_BN: Tensor) -> Tensor:
    """Gather rows (B, N, X) of (B, P, X)."""
    return values_BPX.gather(1, repeat(index_BN, "b n -> b n x", x=values_BPX.shape[-1]))
