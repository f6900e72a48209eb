"""Learning rates and weight decay: who gets what."""

from __future__ import annotations

from itertools import pairwise

import pytest

from continual.base import OWNED
from engine.config import OptimConfig
from engine.stage import parameter_groups, rate
from tests.models.builders import tiny


def test_rates_and_decay_of_every_parameter() -> None:
    model = tiny()
    groups = parameter_groups(model, OptimConfig(weight_decay=0.05, backbone_lr=0.5), lr=0.01, shared=0.1)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        lr = 0.01 if name in OWNED else 0.0005 if name.startswith("backbone.") else 0.001
        decay = 0.05 if p.ndim > 1 and name not in OWNED else 0.0
        assert found[id(p)] == (pytest.approx(lr), decay), name


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate(step, 100, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3
