"""Paired bootstrap: intervals of a difference between two models on the same images."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.bootstrap import interval, paired_drop
from engine.evaluation.metrics import ClassificationTally


def tally(right: list[bool]) -> ClassificationTally:
    labels = np.zeros(len(right), dtype=np.int64)
    return ClassificationTally(labels, np.where(right, 0, 1), ("a", "b"))


def test_a_model_against_itself_drops_nothing() -> None:
    one = tally([True, False, True, True])
    drop = paired_drop(one, one, "Top-1", 50)
    assert (drop["points"], drop["relative"]) == (0, 0)
    assert drop["points_interval"] == (0, 0)


def test_values_and_interval_of_a_known_difference() -> None:
    before, after = tally([True] * 80 + [False] * 20), tally([True] * 70 + [False] * 30)
    drop = paired_drop(before, after, "Top-1", 2000)
    assert (drop["before"], drop["after"]) == (0.8, 0.7)
    assert drop["points"] == pytest.approx(10)
    assert drop["relative"] == pytest.approx(0.125)
    # Ten of a hundred images differ, always in the same direction: a binomial share of 0.10 +- 1.96 * 0.03.
    low, high = drop["points_interval"]
    assert low == pytest.approx(10 - 5.9, abs=1.2)
    assert high == pytest.approx(10 + 5.9, abs=1.2)


def test_pairing_makes_common_difficulty_cancel() -> None:
    rng = np.random.default_rng(0)
    hard = (rng.random(200) < 0.5).tolist()
    worse = [h and i % 50 != 0 for i, h in enumerate(hard)]
    low, high = paired_drop(tally(hard), tally(worse), "Top-1", 500)["points_interval"]
    assert high - low < 4  # unpaired, each has a standard error of 3.5 points


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = tally([True, False] * 20), tally([True, True, False, False] * 10)
    assert paired_drop(a, b, "Top-1", 100) == paired_drop(a, b, "Top-1", 100)
    assert paired_drop(a, b, "Top-1", 100) != paired_drop(a, b, "Top-1", 100, seed=1)


def test_sets_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="on 3 images, the other on 2"):
        paired_drop(tally([True] * 3), tally([True] * 2), "Top-1")


def test_what_does_not_exist_is_left_out() -> None:
    assert interval(np.array([np.nan, 1.0, 1.0, np.inf])) == (1.0, 1.0)
    assert all(np.isnan(interval(np.array([np.nan]))))
