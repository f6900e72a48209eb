"""Batch-norm statistics move in the stages that the setting names, and in no other, to the bit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine.storage.checkpoint import WEIGHTS, backbone_weights, load
from engine.train import main

STAGE0 = WEIGHTS / "fast_scnn_stage0.pt"


@pytest.mark.parametrize(
    ("kept", "moved"),
    [("never", [True, True]), ("last", [True, False]), ("later", [False, False]), ("always", [False, False])],
)
def test_statistics_move_in_the_stages_that_may_move_them(
    kept: str, moved: list[bool], tiny: list[str], tmp_path: Path
) -> None:
    main([*tiny, "--continual.freeze_statistics", kept, "--optim.epochs.seg", "1", "--optim.epochs.cls", "1"])
    ends = [load(tmp_path / "runs" / "tiny" / f"{stage}.pt")["model"] for stage in ("seg", "det", "cls")]
    names = [name for name in ends[0] if name.endswith(("running_mean", "running_var"))]
    assert names
    changed = [[not torch.equal(a[name], b[name]) for name in names] for a, b in pairwise(ends)]
    assert [all(stage) for stage in changed] == moved
    assert [any(stage) for stage in changed] == moved
    deviations = [value + 1e-5 for name, value in ends[0].items() if name.endswith("running_var")]
    absorbed = all(torch.allclose(d, torch.ones_like(d), atol=1e-6) for d in deviations)
    assert absorbed == (kept in ("later", "always")), "filters take up what the next stage keeps, and nothing else"
    start = 0.0 if "mean" in names[0] else 1.0
    assert bool((ends[0][names[0]] == start).all()) == (kept == "always")


@pytest.mark.parametrize("first", ["later", "never"])
def test_remedies_compare_weights_that_have_absorbed_the_same(first: str, tiny: list[str], tmp_path: Path) -> None:
    """Weights that hardly move are where they started, whatever the stage before was followed by."""
    still = ["--optim.lr", "1e-9", "--optim.epochs.det", "1", "--continual.ewc", "1", "--continual.l2sp", "1"]
    main([*tiny, "--continual.freeze_statistics", first, "--stage", "seg"])
    main([*tiny, *still, "--continual.freeze_statistics", "later", "--stage", "det"])
    losses = load(tmp_path / "runs" / "tiny" / "det.pt")["rows"][-1]["losses"]
    assert losses["ewc"] < 1e-4
    assert losses["l2sp"] < 1e-4


def test_a_backbone_at_no_rate_stays_to_the_bit(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = ["--optim.backbone_lr", "0", "--init", "stage0", "--continual.recall", "1", "--continual.ewc", "1"]
    assert main([*tiny, *still, "--order", "[seg,det]", "--optim.epochs.det", "1"]) == 0
    assert "hold and recall do nothing, the backbone stays as it is" in capsys.readouterr().out
    stage0 = {f"backbone.{name}": v for name, v in backbone_weights(STAGE0, "fast_scnn").items()}
    ends = [load(tmp_path / "runs" / "tiny" / f"{stage}.pt")["model"] for stage in ("seg", "det")]
    for end in ends:
        assert all(torch.equal(end[name].float(), weight) for name, weight in stage0.items())
    moved = {name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])}
    assert {"neck.lateral.0.0.weight", "neck.lateral.0.1.running_mean", "head.projection.weight"} <= moved
