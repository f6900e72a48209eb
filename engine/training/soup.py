"""Model soups: a stage is trained several times from one start, and ends with the mean of what they end with.

Networks that have been fine-tuned from the same pretrained weights often lie in one basin of the loss; their mean then
generalises better than they do, and costs no more when it is used. Source: uniform soups, arXiv 2203.05482, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.settings.config import OptimConfig
from engine.storage.errors import UserError


class Soup:
    """Start of a stage's trainings, and the mean of the weights that those already done have ended with."""

    def __init__(self, model: nn.Module) -> None:
        self.start = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.mean: dict[str, Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Add weights and norm statistics that one training has ended with; counts of batches are the last one's.

        What all have in common stays as it is, to the bit.
        """
        self.count += 1
        for name, value in model.state_dict().items():
            averaged = self.count > 1 and value.is_floating_point()
            self.mean[name] = self.mean[name].lerp(value, 1 / self.count) if averaged else value.clone()

    def state_dict(self) -> dict[str, Any]:
        """State for last.pt: tensors and plain values only."""
        return {"start": self.start, "mean": self.mean, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, on the device of the model."""
        devices = {name: value.device for name, value in self.start.items()}
        self.start, self.mean = ({k: v.to(devices[k]) for k, v in state[part].items()} for part in ("start", "mean"))
        self.count = state["count"]


def check_resumed(before: Mapping[str, Any], now: OptimConfig, stage: str) -> None:
    """Refuse to go on with another number of trainings, or of epochs of each. Raises UserError.

    `before`: the optimiser's settings of the interrupted run.
    """
    soup, epochs = before.get("soup", 1), before["epochs"][stage]
    if soup != now.soup or (soup > 1 and epochs != getattr(now.epochs, stage)):
        raise UserError(
            f"stage {stage} was interrupted with optim.soup {soup} and optim.epochs.{stage} {epochs}: keep both to "
            "resume, or start under a new --name"
        )
