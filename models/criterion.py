"""The loss: detection, segmentation and classification terms for whatever is annotated in a batch.

Every term is a sum over the batch divided by a count over all processes, so that several processes give the gradient of
one. Everything runs in float32, whatever precision the network ran in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from models.boxes import pair_iou, to_xyxy
from models.head import Outputs
from models.matcher import Match, match_one_to_many, match_one_to_one
from models.targets import NO_CLASS, VOID, Targets

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms and what is added in training."""

    conf: float = 4.0
    """Varifocal loss of all classes of all queries; at 1 its gradient drowns in that of the boxes."""
    l1: float = 2.0
    """L1 distance of matched boxes."""
    giou: float = 2.0
    """Generalised IoU loss of matched boxes."""
    seg_ce: float = 1.0
    """Cross-entropy per pixel."""
    seg_dice: float = 1.0
    """Dice loss per class that is present."""
    cls_ce: float = 4.0
    """Cross-entropy of the image label."""
    smoothing: float = 0.1
    """Label smoothing of the image label."""
    dense: float = 1.0
    """Weight of the one-to-many loss on locations, the cells of all levels."""
    extra: float = 1.0
    """Weight of group and denoising queries together."""
    aux: float = 0.5
    """Weight of the earlier layers' outputs against the last."""
    groups: int = 0
    """Additional runs of queries for one-to-many matching."""
    denoise: int = 1
    """Runs of denoising queries."""


LOWEST_QUALITY = 0.05
"""Target of a matched box that overlaps nothing, so that it is still told from the background."""


class Criterion:
    """Losses by name for one batch.

    Args:
        config: weights.
        mean_count: turns the counts of this process into their mean over all processes; identity for one process.
        mask_named: bool (C_det,), classes of which masks give boxes; None where no image's boxes come from its mask.
    """

    def __init__(
        self,
        config: LossConfig,
        mean_count: Callable[[Tensor], Tensor] = lambda count: count,
        mask_named: Tensor | None = None,
    ) -> None:
        self.config = config
        self.mean_count = mean_count
        self.mask_named = mask_named

    def __call__(self, outputs: Outputs, targets: Targets, denoise: Match | None = None) -> Losses:
        """Weighted terms to be summed, float32 scalars.

        Names: "conf", "l1", "giou", "seg_ce", "seg_dice", "cls_ce" for the last layer, with "_aux" for the
        earlier ones together, "_dense" for locations, "_extra" for training-only queries. Terms that no image of
        the batch is annotated for are absent.

        Args:
            outputs: from `OneHead.forward`, logits of any float type.
            targets: annotations of the same images.
            denoise: which object the denoising queries, the last runs of "extra_outputs", stand for.
        """
        objects, *images = self.counts(targets)
        boxed, masked, labelled = (count > 0 for count in torch.stack(images).tolist())
        matches, extra = self.match(outputs, targets, denoise) if boxed else ([], [])
        pictured = targets.has_masks.nonzero()[:, 0]
        masks = targets.masks[pictured]
        losses: Losses = {}
        aux = outputs["aux_outputs"]
        for out, name, weight in [(outputs, "", 1.0), *((a, "_aux", self.config.aux) for a in aux)]:
            if boxed and "pred_boxes" in out:
                self.add(losses, self.boxes(out, matches.pop(0), targets, objects), name, weight)
            if masked:
                logits, zoom = out["pred_masks"][pictured], 1 if name else 2
                self.add(losses, self.segmentation(logits, masks, images[1], zoom), name, weight)
            if labelled:
                self.add(losses, self.classification(out["pred_class"], targets, images[2]), name, weight)
        if boxed:
            self.training_only(losses, outputs, targets, extra, objects)
        return losses

    def match(self, outputs: Outputs, targets: Targets, denoise: Match | None) -> tuple[list[Match], list[Match]]:
        """Matches of all layers with boxes, the last layer first, and of the training-only queries of each layer.

        Group queries are matched like layers, all together; denoising queries answer for what they were made from.
        """
        layers = [out for out in (outputs, *outputs["aux_outputs"]) if "pred_boxes" in out]
        extra, groups = outputs.get("extra_outputs", []), self.config.groups
        runs = groups + (self.config.denoise if denoise is not None else 0)
        size = extra[0]["pred_boxes"].shape[1] // runs if extra else 0
        split = [{k: v[:, g * size : (g + 1) * size] for k, v in out.items()} for out in extra for g in range(groups)]
        found = match_one_to_one([*layers, *split], targets)
        matched, grouped = found[: len(layers)], iter(found[len(layers) :])
        fixed = [denoise.shifted(groups * size)] if denoise is not None else []
        return matched, [Match.cat([*(next(grouped).shifted(g * size) for g in range(groups)), *fixed]) for _ in extra]

    def training_only(
        self, losses: Losses, outputs: Outputs, targets: Targets, extra: list[Match], objects: Tensor
    ) -> None:
        """Add the box terms of locations and of training-only queries."""
        match = match_one_to_many(outputs["dense"], targets)
        pairs = self.mean_count(torch.full_like(objects, len(match.image)))
        pairs = pairs.where(pairs > 0, 1.0)
        self.add(losses, self.boxes(outputs["dense"], match, targets, pairs), "_dense", self.config.dense)
        runs = self.config.groups + self.config.denoise
        for out, match in zip(outputs.get("extra_outputs", []), extra):
            self.add(losses, self.boxes(out, match, targets, objects * runs), "_extra", self.config.extra / len(extra))

    def add(self, losses: Losses, terms: Losses, suffix: str, weight: float) -> None:
        """Add terms, times their configured weights, to the sums kept by name."""
        for name, value in terms.items():
            weighted = getattr(self.config, name) * weight * value
            losses[name + suffix] = losses.get(name + suffix, 0.0) + weighted

    def counts(self, targets: Targets) -> list[Tensor]:
        """Objects (1 for none), images with boxes, with a mask, with a label: means over the processes.

        A count of 0 means that no process needs the terms, so all leave them out together.
        """
        objects = torch.full_like(targets.classes[0], sum(len(b) for b in targets.boxes))
        labelled = (targets.classes != NO_CLASS).sum()
        local = torch.stack([objects, targets.has_boxes.sum(), targets.has_masks.sum(), labelled])
        objects, *images = self.mean_count(local.float())
        return [objects.where(objects > 0, 1.0), *images]

    def boxes(self, out: Outputs, match: Match, targets: Targets, count: Tensor) -> Losses:
        """Classes of all queries of annotated images, boxes of the matched ones."""
        where = (match.image, match.query)
        boxes, logits = out["pred_boxes"].float()[where], out["pred_logits"].float()
        quality = torch.zeros_like(logits)
        quality[(*where, match.labels)] = pair_iou(boxes.detach(), match.boxes).clamp(min=LOWEST_QUALITY)
        conf = varifocal(logits, quality) * (self.absence_known(out["pred_boxes"], targets) | (quality > 0))
        giou = generalized_box_iou_loss(to_xyxy(boxes), to_xyxy(match.boxes), reduction="sum")
        return {
            "conf": conf.sum() / count,
            "l1": (boxes - match.boxes).abs().sum() / count,
            "giou": giou / count,
        }

    def absence_known(self, boxes_BN4: Tensor, targets: Targets) -> Tensor:
        """Whether a class without an annotated object in a predicted box is absent there: bool (B, N or 1, C or 1).

        Boxes that come from a mask are those of the classes that masks name, and lie where the mask is not void.
        """
        boxed_B11 = targets.has_boxes[:, None, None]
        if self.mask_named is None:
            return boxed_B11
        masks, last = targets.masks, targets.masks.shape[-1] - 1
        column, row = (boxes_BN4[..., :2].float() * (last + 1)).long().clamp(0, last).unbind(-1)
        void_BN = masks[torch.arange(len(masks), device=masks.device)[:, None], row, column] == VOID
        of_mask_B11 = targets.has_masks[:, None, None]
        return boxed_B11 & (~of_mask_B11 | (self.mask_named & ~void_BN[..., None]))

    def segmentation(self, logits_BKHW: Tensor, masks_BHW: Tensor, count: Tensor, zoom: int = 2) -> Losses:
        """Cross-entropy and Dice per image, at `zoom` times the logits' resolution, void left out.

        Earlier layers are compared at zoom 1: at 2 their terms alone took a fifth of a training step.
        """
        logits = logits_BKHW.float()
        if zoom > 1:
            logits = F.interpolate(logits, scale_factor=zoom, mode="bilinear")
        step = masks_BHW.shape[-1] // logits.shape[-1]
        masks = masks_BHW[:, step // 2 :: step, step // 2 :: step]
        log_p = logits.log_softmax(1)
        ce = F.nll_loss(log_p, masks, ignore_index=VOID, reduction="none").sum((1, 2))
        known = (masks != VOID).sum((1, 2))
        return {"seg_ce": (ce / known.clamp(min=1)).sum() / count, "seg_dice": dice(log_p.exp(), masks).sum() / count}

    def classification(self, logits_BC: Tensor, targets: Targets, count: Tensor) -> Losses:
        """Cross-entropy of the image label."""
        ce = F.cross_entropy(
            logits_BC.float(),
            targets.classes,
            ignore_index=NO_CLASS,
            reduction="sum",
            label_smoothing=self.config.smoothing,
        )
        return {"cls_ce": ce / count}


def varifocal(logits: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """IoU-aware focal loss, element by element: `quality` is the target, 0 for nothing.

    Source: VarifocalNet, arXiv 2008.13367, equation 2, but for one thing: the weight of what is nothing, alpha p^gamma,
    is a constant here, through which no gradient flows.
    """
    weight = torch.where(quality > 0, quality, alpha * logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, quality, weight, reduction="none")


def dice(probs_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """1 - Dice, averaged over the classes present in each image (B,); 0 for an image without labels."""
    masks = rearrange(masks_BHW, "b h w -> b (h w)")
    known = masks != VOID
    labels = masks.where(known, 0)
    probs = rearrange(probs_BKHW, "b k h w -> b k (h w)") * known[:, None]
    right = probs.gather(1, labels[:, None])[:, 0]
    zeros = probs.new_zeros(probs.shape[:2])
    overlap = zeros.scatter_add(1, labels, right)
    size = zeros.scatter_add(1, labels, known.to(probs.dtype))
    score = (2 * overlap + 1) / (probs.sum(-1) + size + 1)
    present = size > 0
    return ((1 - score) * present).sum(1) / present.sum(1).clamp(min=1)
