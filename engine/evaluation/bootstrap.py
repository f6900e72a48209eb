"""How sure a difference between two models is on few images: the paired bootstrap.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals). Both models are
scored on the same resampled images, so that what makes an image hard for both cancels.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from engine.evaluation.metrics import Tally

SAMPLES = 400
"""Resampled sets; the ends of a 95 % interval are then good to a tenth of its width."""


class Drop(TypedDict):
    """A metric of two models, and by how much the second is lower; intervals hold 95 %, None: not known.

    points: 100 x the difference; relative: share of the first; a negative drop is a gain.
    """

    before: float
    after: float
    points: float
    points_interval: tuple[float, float] | None
    relative: float
    relative_interval: tuple[float, float] | None


def paired_drop(before: Tally, after: Tally, metric: str, samples: int = SAMPLES, seed: int = 0) -> Drop:
    """The drop of `metric` from one model to another on the same images. Raises ValueError for different sets."""
    if len(before) != len(after):
        raise ValueError(f"one model was scored on {len(before)} images, the other on {len(after)}")
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(before), size=len(before)) for _ in range(samples)]
    first, second = before.scores()[metric], after.scores()[metric]
    pairs = np.array([(before.scores(d)[metric], after.scores(d)[metric]) for d in draws])
    points = 100 * (pairs[:, 0] - pairs[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (pairs[:, 0] - pairs[:, 1]) / pairs[:, 0]
    found = plain_drop(first, second)
    return {**found, "points_interval": interval(points), "relative_interval": interval(relative)}


def plain_drop(before: float, after: float) -> Drop:
    """The drop from one value to another, how sure it is not known."""
    return {
        "before": before,
        "after": after,
        "points": 100 * (before - after),
        "points_interval": None,
        "relative": (before - after) / before if before else 0.0,
        "relative_interval": None,
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the values that exist; NaN if none does."""
    existing = values[np.isfinite(values)]
    if not existing.size:
        return math.nan, math.nan
    low, high = np.percentile(existing, [2.5, 97.5])
    return float(low), float(high)
