from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.train import main

BOX_TERMS = {"conf", "l1", "giou", "conf_dense", "l1_extra"}


@pytest.mark.parametrize(("order", "learns"), [("[seg,det]", True), ("[det,seg]", False)])
def test_regions_teach_boxes_until_boxes_are_an_old_task(
    tiny: list[str], tmp_path: Path, order: str, learns: bool
) -> None:
    arguments = ["--order", order, "--loss.regions", "true", "--continual.replay", "0"]
    assert main([*tiny, *arguments, "--optim.epochs.seg", "1", "--optim.epochs.det", "1"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "metrics.jsonl").open()]
    losses = next(row["losses"] for row in rows if row["stage"] == "seg")
    assert (losses.keys() >= BOX_TERMS) is learns
    assert "seg_ce" in losses
    if learns:
        assert losses["det_class"] == 0  # whose class nobody told
        assert losses["giou"] > 0
