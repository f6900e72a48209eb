"""Elastic Weight Consolidation: weights that mattered for old tasks are held by springs as stiff as they mattered.

Source: arXiv 1612.00796, equation 3. The importance is the diagonal of the empirical Fisher information: the mean
over training images of the squared gradient of one image's loss, in eval mode. (Squaring the gradient of a batch's mean
loss, as some libraries do, gives another and much smaller quantity.) Importances of several stages add up around the
latest weights, as in online EWC, arXiv 1805.06370, section 4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from continual.base import Examples, Losses, Remedy, Stage, Step
from models.onehead import OneHead
from models.targets import Targets

Weights = dict[str, Tensor]


class EWC(Remedy):
    """weight / 2 x importance x squared distance from the last stage's end; a stage's importance has mean 1."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.fisher: Weights = {}
        self.centre: Weights = {}
        self.model: OneHead | None = None

    def before_stage(self, stage: Stage) -> None:
        """Hold on to the network whose weights are to be bound, if there are old tasks."""
        self.model = stage.model if stage.old else None
        if self.model is not None:
            device = self.model.mean.device
            self.fisher = {k: v.to(device) for k, v in self.fisher.items()}
            self.centre = {k: v.to(device) for k, v in self.centre.items()}

    def penalty(self, step: Step, outputs: dict[str, Any]) -> Losses:
        """Term "ewc"."""
        if self.model is None or not self.fisher:
            return {}
        own = dict(self.model.named_parameters())
        parts = [(f * (own[k].float() - self.centre[k]).square()).sum() for k, f in self.fisher.items()]
        return {"ewc": self.weight / 2 * torch.stack(parts).sum()}

    def after_stage(self, stage: Stage) -> None:
        """Add this stage's importance and move the centre to where it ended."""
        assert stage.model is not None
        fisher = normalised(diagonal_fisher(stage.model, stage.loss, stage.examples()))
        self.fisher = {k: v + self.fisher.get(k, torch.zeros(())).to(v.device) for k, v in fisher.items()}
        self.centre = {k: p.detach().float().clone() for k, p in stage.model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        """Importances and centre."""
        return {name: {k: v.cpu() for k, v in getattr(self, name).items()} for name in ("fisher", "centre")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.fisher, self.centre = dict(state["fisher"]), dict(state["centre"])


def diagonal_fisher(
    model: OneHead, loss: Callable[[OneHead, Tensor, Targets], Tensor | None], examples: Examples
) -> Weights:
    """Mean squared gradient of the loss of single images, by parameter; images without annotation count as 0."""
    model = copy.deepcopy(model).requires_grad_(True).eval()
    fisher = {k: torch.zeros_like(p, dtype=torch.float32) for k, p in model.named_parameters()}
    device = model.mean.device
    for image, targets in tqdm(examples, desc="importance of weights", leave=False, disable=None):
        value = loss(model, image[None].to(device), targets.to(device))
        if value is None:
            continue
        model.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        for k, p in model.named_parameters():
            if p.grad is not None:
                fisher[k] += p.grad.float().square() / len(examples)
    return fisher


def normalised(fisher: Weights) -> Weights:
    """Scaled to a mean of 1 over all weights that matter at all, so that one strength suits every loss and size."""
    total = sum(float(v.sum()) for v in fisher.values())
    count = sum(int((v > 0).sum()) for v in fisher.values())
    return {k: v * (count / total) for k, v in fisher.items()} if total else fisher
