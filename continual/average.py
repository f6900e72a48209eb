"""Averaging of stage checkpoints: the stage ends somewhere between where it started and where it got.

Source: WiSE-FT, arXiv 2109.01903, section 3, on the weights that tasks share; those of the new tasks alone stay as
learnt. Only sensible with batch-norm statistics kept (continual.freeze_statistics).
"""

from __future__ import annotations

import torch

from continual.base import Remedy, Stage, own_weights


class Average(Remedy):
    """The share `share` of the stage's start in its final weights."""

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"continual.average is {share}: it is the start's share, between 0 and 1")
        self.share = share

    @torch.no_grad()
    def after_training(self, stage: Stage) -> None:
        """Mix the start in, if there are old tasks."""
        if not stage.old or stage.start is None or stage.model is None:
            return
        own, start = own_weights(stage.model, stage.tasks), dict(stage.start.named_parameters())
        for name, p in stage.model.named_parameters():
            mixed = p.lerp(start[name], self.share)
            p.copy_(p.where(own[name], mixed) if name in own else mixed)
