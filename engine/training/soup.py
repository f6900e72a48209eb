"""Model soups: a stage is trained several times from one start, and ends with the mean of what they end with.

Networks fine-tuned from the same weights lie in one basin of the loss; their mean generalises better than each of
them and costs nothing more when it is used. Source: uniform soups, arXiv 2203.05482, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.settings.config import OptimConfig
from engine.storage.errors import UserError


class Soup:
    """Start of a stage's trainings, and the sum of the weights that those already done have ended with."""

    def __init__(self, model: nn.Module) -> None:
        self.start = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Add weights and norm statistics that one training has ended with; counts of batches stay the last one's."""
        for name, value in model.state_dict().items():
            summed = self.count and value.is_floating_point()
            self.sums[name] = self.sums[name] + value if summed else value.detach().clone()
        self.count += 1

    def mean(self) -> dict[str, Tensor]:
        """The mean of what was added, as a state of the model."""
        return {name: v / self.count if v.is_floating_point() else v for name, v in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """State for last.pt: tensors and plain values only."""
        return {"start": self.start, "sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.start, self.sums, self.count = state["start"], state["sums"], state["count"]


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
