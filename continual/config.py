"""Which remedies against forgetting are on, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ContinualConfig:
    """Remedies add up; a weight, share or size of 0 switches one off."""

    freeze_statistics: Literal["never", "last", "later", "always"] = "never"
    """Keep batch-norm statistics: in the last stage, in stages after the first, or always, as the start has them."""
    distill: float = 3.0
    """Weight of the distance to all outputs of the previous stage's checkpoint, dense and layer by layer."""
    distill_features: float = 0.0
    """Weight of the relative squared distance to the feature maps of that checkpoint."""
    distill_boxes: bool = True
    """Correct that checkpoint's masks by the boxes of the stage that learns these, for classes that both tasks name."""
    hold: float = 0.0
    """Weight of the relative squared distance to the feature maps of the pretrained backbone, in every stage."""
    recall: float = 1.0
    """Weight of the distance to what the pretrained backbone calls random regions, in every stage."""
    lwf: float = 0.0
    """Learning without Forgetting: weight of the distance to its final outputs alone."""
    lwf_sure: float = 0.5
    """Probability from which on a pixel's old class counts."""
    replay: int = 0
    """Images stored of each old task, at most 10."""
    replay_step: int = 2
    """Replayed images added to each step, of all old tasks together, at most 10."""
    replay_outputs: float = 1.0
    """Weight of the distance to the outputs stored with replayed images."""
    replay_vary: bool = False
    """Augment replayed images anew each time they are shown; stored outputs are then unused."""
    replay_sets: int = 10
    """Images added to each step of each old task, drawn from its whole training set and augmented anew, at most 10."""
    replay_boxes: bool = True
    """Masks of `replay_sets` also give boxes of classes that both tasks name, one of each connected region."""
    expert: float = 0.0
    """Weight of the distance to the outputs of networks that have learnt the stage's own task."""
    expert_seg: str | None = None
    """Checkpoint of such a network for segmentation, behind any backbone."""
    expert_det: str | None = None
    """For detection."""
    expert_cls: str | None = None
    """For classification."""
    compose: float = 0.0
    """Unlabelled images composed of four of the step's, replayed ones among them, as a share of these; to distil."""
    ewc: float = 0.0
    """Elastic Weight Consolidation: stiffness; an average weight that matters has importance 1."""
    l2sp: float = 0.0
    """Pull of the weights towards where the stage started."""
    average: float = 0.0
    """Share of the stage's start in the weights that it ends with, for kept batch-norm statistics."""
    freeze: bool = False
    """Learn nothing but the new tasks' own rows of the projection: a reference row, for kept batch-norm statistics."""

    @property
    def boxes_from_masks(self) -> bool:
        """Whether replayed masks also give boxes."""
        return bool(self.replay_sets and self.replay_boxes)

    @property
    def distills(self) -> bool:
        """Whether the previous stage's checkpoint teaches."""
        return bool(self.distill or self.distill_features or self.lwf)
