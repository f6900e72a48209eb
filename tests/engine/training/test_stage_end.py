"""What a stage records of its end is what its checkpoint does."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.storage.checkpoint import load, load_model
from engine.train import main
from engine.training.summary import rounded
from tests.engine.conftest import run_of


@pytest.mark.parametrize("share", ["0", "0.9"])
def test_the_last_row_of_a_stage_scores_the_checkpoint(share: str, tiny: list[str], tmp_path: Path) -> None:
    main([*tiny, "--continual.average", share, "--optim.lr", "0.01"])
    run = run_of(tiny)
    for stage in ("seg", "det", "cls"):
        path = tmp_path / "runs" / "tiny" / f"{stage}.pt"
        row = load(path)["rows"][-1]
        assert row["stage"] == stage
        scores = rounded(run.evaluate(load_model(path)))
        assert {name: row[name] for name in scores} == scores
