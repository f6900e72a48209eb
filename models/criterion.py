"""The loss: detection, segmentation and classification terms for whatever is annotated in a batch.

Every term is a sum over the batch divided by a count over all processes, so that several processes give the gradient of
one. Everything runs in float32, whatever precision the network ran in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
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

    conf: float = 1.0
    """Varifocal loss of the objectness."""
    det_class: float = 1.0
    """Cross-entropy of the class of matched queries."""
    l1: float = 5.0
    """L1 distance of matched boxes."""
    giou: float = 2.0
    """Generalised IoU loss of matched boxes."""
    seg_ce: float = 1.0
    """Cross-entropy per pixel."""
    seg_dice: float = 1.0
    """Dice loss per class that is present."""
    cls_ce: float = 1.0
    """Cross-entropy of the image label."""
    smoothing: float = 0.1
    """Label smoothing of both class terms."""
    dense: float = 1.0
    """Weight of the one-to-many loss on memory tokens."""
    extra: float = 1.0
    """Weight of group and denoising queries together."""
    aux: float = 0.5
    """Weight of the earlier layers' outputs against the last."""
    groups: int = 2
    """Additional runs of queries for one-to-many matching."""
    denoise: int = 1
    """Runs of denoising queries."""


class Criterion:
    """Losses by name for one batch.

    Args:
        config: weights.
        mean_count: turns the counts of this process into their mean over all processes; identity for one process.
    """

    def __init__(self, config: LossConfig, mean_count: Callable[[Tensor], Tensor] = lambda count: count) -> None:
        self.config = config
        self.mean_count = mean_count

    def __call__(self, outputs: Outputs, targets: Targets, denoise: Match | None = None) -> Losses:
        """Weighted terms to be summed, float32 scalars.

        Names: "conf", "det_class", "l1", "giou", "seg_ce", "seg_dice", "cls_ce" for the last layer, with "_aux" for the
        earlier ones together, "_dense" for memory tokens, "_extra" for training-only queries.

        Args:
            outputs: from `OneHead.forward`, logits of any float type.
            targets: annotations of the same images.
            denoise: which object the denoising queries, the last runs of "extra_outputs", stand for.
        """
        config = self.config
        objects, masks, classes = self.counts(targets)
        losses: Losses = {}
        aux = outputs["aux_outputs"]
        for out, name, weight in [(outputs, "", 1.0), *((a, "_aux", config.aux) for a in aux)]:
            if "pred_boxes" in out:
                self.add(losses, self.boxes(out, match_one_to_one(out, targets), targets, objects), name, weight)
            self.add(losses, self.segmentation(out["pred_masks"], targets, masks), name, weight)
            self.add(losses, self.classification(out["pred_class"], targets, classes), name, weight)
        match = match_one_to_many(outputs["dense"], targets)
        pairs = self.mean_count(objects.new_tensor(float(len(match.image)))).clamp(min=1)
        self.add(losses, self.boxes(outputs["dense"], match, targets, pairs), "_dense", config.dense)
        extra = outputs.get("extra_outputs", [])
        for out in extra:
            match = self.match_extra(out, targets, denoise)
            runs = config.groups + config.denoise
            self.add(losses, self.boxes(out, match, targets, objects * runs), "_extra", config.extra / len(extra))
        return losses

    def add(self, losses: Losses, terms: Losses, suffix: str, weight: float) -> None:
        """Add terms, times their configured weights, to the sums kept by name."""
        for name, value in terms.items():
            weighted = getattr(self.config, name) * weight * value
            losses[name + suffix] = losses.get(name + suffix, 0.0) + weighted

    def counts(self, targets: Targets) -> Tensor:
        """Objects, images with a mask and images with a label (3,): means over the processes, at least 1."""
        masked = (targets.masks != VOID).flatten(1).any(1).sum()
        labelled = (targets.classes != NO_CLASS).sum()
        objects = torch.full_like(masked, sum(len(b) for b in targets.boxes))
        return self.mean_count(torch.stack([objects, masked, labelled]).float()).clamp(min=1)

    def match_extra(self, out: Outputs, targets: Targets, denoise: Match | None) -> Match:
        """Group queries by Hungarian matching, denoising queries by what they were made from."""
        groups = self.config.groups
        runs = groups + (self.config.denoise if denoise is not None else 0)
        start = out["pred_conf"].shape[1] // runs * groups
        parts = [match_one_to_one({k: v[:, :start] for k, v in out.items()}, targets, groups)] if groups else []
        if denoise is not None:
            parts.append(Match(denoise.image, denoise.query + start, denoise.boxes, denoise.labels))
        return Match.cat(parts)

    def boxes(self, out: Outputs, match: Match, targets: Targets, count: Tensor) -> Losses:
        """Objectness of all queries of annotated images, class and box of the matched ones."""
        where = (match.image, match.query)
        boxes, logits = out["pred_boxes"].float()[where], out["pred_logits"].float()[where]
        quality = torch.zeros_like(out["pred_conf"], dtype=torch.float32)
        quality[where] = pair_iou(boxes.detach(), match.boxes).clamp(min=0.05)
        conf = varifocal(out["pred_conf"].float(), quality) * targets.has_boxes[:, None]
        giou = generalized_box_iou_loss(to_xyxy(boxes), to_xyxy(match.boxes), reduction="sum")
        return {
            "conf": conf.sum() / count,
            "det_class": F.cross_entropy(logits, match.labels, reduction="sum", label_smoothing=self.config.smoothing)
            / count,
            "l1": (boxes - match.boxes).abs().sum() / count,
            "giou": giou / count,
        }

    def segmentation(self, logits_BKHW: Tensor, targets: Targets, count: Tensor) -> Losses:
        """Cross-entropy and Dice per labelled image, at twice the logits' resolution, void left out."""
        logits = F.interpolate(logits_BKHW.float(), scale_factor=2, mode="bilinear")
        step = targets.masks.shape[-1] // logits.shape[-1]
        masks = targets.masks[:, step // 2 :: step, step // 2 :: step]
        ce = F.cross_entropy(logits, masks, ignore_index=VOID, reduction="none").flatten(1).sum(1)
        known = (masks != VOID).flatten(1).sum(1)
        return {"seg_ce": (ce / known.clamp(min=1)).sum() / count, "seg_dice": dice(logits, masks).sum() / count}

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

    Source: VarifocalNet, arXiv 2008.13367, equation 2.
    """
    weight = torch.where(quality > 0, quality, alpha * logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, quality, weight, reduction="none")


def dice(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """1 - Dice, averaged over the classes present in each image (B,); 0 for an image without labels."""
    known = (masks_BHW != VOID)[:, None]
    probs = logits_BKHW.softmax(1) * known
    truth = F.one_hot(masks_BHW.where(known[:, 0], 0), probs.shape[1]).permute(0, 3, 1, 2) * known
    present = truth.flatten(2).any(-1)
    overlap = 2 * (probs * truth).flatten(2).sum(-1)
    score = (overlap + 1) / (probs.flatten(2).sum(-1) + truth.flatten(2).sum(-1) + 1)
    return ((1 - score) * present).sum(1) / present.sum(1).clamp(min=1)
