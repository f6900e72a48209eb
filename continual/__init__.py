"""Remedies against forgetting. They add up: every one that the configuration switches on acts at every step."""

from __future__ import annotations

from continual.average import Average
from continual.base import Examples, Losses, Remedy, Stage, Step
from continual.compose import Compose
from continual.config import ContinualConfig
from continual.distill import Distill
from continual.ewc import EWC
from continual.expert import Expert
from continual.freeze import Freeze
from continual.hold import Hold
from continual.l2sp import L2SP
from continual.lwf import LwF
from continual.recall import Recall
from continual.replay import Replay
from continual.replay_sets import ReplaySets

__all__ = ["ContinualConfig", "Examples", "Losses", "Remedy", "Stage", "Step", "remedies"]


def remedies(config: ContinualConfig) -> dict[str, Remedy]:
    """The remedies that are switched on, by name; those that add images come first, so that teachers see them."""
    check(config)
    c = config
    chosen: dict[str, Remedy | None] = {
        "replay": Replay(c.replay, c.replay_step, c.replay_outputs, c.replay_vary) if c.replay else None,
        "replay_sets": ReplaySets(c.replay_sets) if c.replay_sets else None,
        "compose": Compose(c.compose) if c.compose else None,
        "expert": Expert(c.expert) if c.expert else None,
        "lwf": LwF(c.lwf, c.lwf_sure) if c.lwf else None,
        "distill": (
            Distill(c.distill, c.distill_features, c.distill_boxes) if c.distill or c.distill_features else None
        ),
        "hold": Hold(c.hold) if c.hold else None,
        "recall": Recall(c.recall) if c.recall else None,
        "ewc": EWC(c.ewc) if c.ewc else None,
        "l2sp": L2SP(c.l2sp) if c.l2sp else None,
        "average": Average(c.average) if c.average else None,
        "freeze": Freeze() if c.freeze else None,
    }
    return {name: remedy for name, remedy in chosen.items() if remedy is not None}


def check(config: ContinualConfig) -> None:
    """Refuse remedies that would do nothing, or something else than their name says. Raises ValueError."""
    c = config
    if c.expert and not (c.expert_seg or c.expert_det or c.expert_cls):
        raise ValueError(f"continual.expert is {c.expert}: name a checkpoint as continual.expert_seg, _det or _cls")
    if c.compose and not (c.expert or c.distills):
        raise ValueError(
            f"continual.compose is {c.compose}: set continual.expert, distill or lwf, which teach on them, or 0 for no "
            "composed images"
        )
    if c.ewc and c.freeze_statistics == "last":
        raise ValueError(
            f"continual.ewc is {c.ewc}: set continual.freeze_statistics to never, later or always; last rescales "
            "filters after stage 2, so that importances of two stages add up in different units"
        )
