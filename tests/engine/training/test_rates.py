"""Learning rates and weight decay: who gets what."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from continual.base import TASK_SPECIFIC
from engine.settings.config import OptimConfig
from engine.storage.errors import UserError
from engine.train import main
from engine.training.rates import parameter_groups, rate, shared_rate
from engine.training.stage import StageLoop
from tests.models.builders import tiny


def test_rates_and_decay_of_every_parameter() -> None:
    model = tiny()
    groups = parameter_groups(model, OptimConfig(weight_decay=0.05, backbone_lr=0.5), lr=0.01, shared=0.1)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        lr = 0.01 if name in TASK_SPECIFIC else 0.0005 if name.startswith("backbone.") else 0.001
        decay = 0.05 if p.ndim > 1 and name not in TASK_SPECIFIC else 0.0
        assert found[id(p)] == (pytest.approx(lr), decay), name
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(g["own"] == (names[id(p)] in TASK_SPECIFIC) for g in groups for p in g["params"])


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate(step, 100, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3


def test_shared_weights_wait_for_new_rows_and_then_rise_as_slowly() -> None:
    rates = [shared_rate(step, 100, warmup=0.05, probe=0.2) for step in range(100)]
    assert rates[:20] == [0.0] * 20
    assert rates[20:40] == pytest.approx([0.05 * (i + 1) for i in range(20)])
    assert all(a > b for a, b in pairwise(rates[40:]))
    assert 0 < rates[-1] < 1e-3
    assert [shared_rate(step, 100, 0.05, 0.0) for step in range(100)] == [rate(step, 100, 0.05) for step in range(100)]


def test_what_tasks_share_waits_at_the_start_of_a_later_stage(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original, moved = StageLoop.step, []

    def step(self: StageLoop, batch: Any, number: int) -> dict[str, float]:
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        values = original(self, batch, number)
        changed = {name for name, p in self.model.named_parameters() if not p.equal(before[name])}
        moved.append((self.name, bool(changed & set(TASK_SPECIFIC)), bool(changed - set(TASK_SPECIFIC))))
        return values

    monkeypatch.setattr(StageLoop, "step", step)
    main([*tiny, "--order", "[seg, det]", "--optim.probe", "0.3"])  # two passes of three steps each
    assert moved == [("seg", True, True)] * 6 + [("det", True, False)] * 2 + [("det", True, True)] * 4


def test_a_probe_leaves_time_to_fall(tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"optim.probe is 0.4: it must be at most 0.3"):
        main([*tiny, "--optim.probe", "0.4"])
