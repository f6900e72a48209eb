"""Remedies against forgetting. They add up: every one that the configuration switches on is asked at every step."""

from __future__ import annotations

from continual.base import Losses, Remedy, Stage, Step
from continual.config import ContinualConfig
from continual.distill import Distill
from continual.replay import Replay

__all__ = ["ContinualConfig", "Losses", "Remedy", "Stage", "Step", "remedies"]


def remedies(config: ContinualConfig) -> dict[str, Remedy]:
    """The remedies that are switched on, by name."""
    chosen: dict[str, Remedy | None] = {
        "replay": Replay(config.replay, config.replay_step) if config.replay else None,
        "distill": Distill(config.distill) if config.distill else None,
    }
    return {name: remedy for name, remedy in chosen.items() if remedy is not None}
