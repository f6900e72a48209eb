"""Photographs of stage 0 in a training run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.errors import DataError
from engine.settings.config import PretrainConfig
from engine.storage.checkpoint import load
from engine.train import main
from engine.training.examples import PhotographViews


def test_an_expert_teaches_on_them_and_the_same_seed_shows_the_same(
    tiny: list[str], drawn: Path, untouched: Path, tmp_path: Path
) -> None:
    arguments = [*tiny, "--pretrain.sources", f"[{drawn}]", "--continual.photographs", "2", "--stage", "seg"]
    arguments += ["--continual.expert", "1", "--continual.expert_seg", str(untouched / "cls.pt")]
    assert main([*arguments, "--name", "one", "--optim.epochs.seg", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "one" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["losses"]["expert_seg"] > 0 for row in rows)
    assert main([*arguments, "--name", "two", "--optim.epochs.seg", "2"]) == 0
    one, two = (load(tmp_path / "runs" / name / "seg.pt")["model"] for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_views_are_of_the_size_of_training_and_new_each_time(drawn: Path) -> None:
    views = PhotographViews(PretrainConfig(sources=[str(drawn)], side=32), 64)
    torch.manual_seed(0)
    one, other = views(3), views(3)
    assert one.shape == (3, 3, 64, 64)
    assert one.amin() >= 0
    assert one.amax() <= 1
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(views(3), one)


def test_photographs_that_are_not_there_are_named(tiny: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "photos.zip"
    arguments = [*tiny, "--pretrain.sources", f"[{missing}]", "--continual.photographs", "2", "--stage", "seg"]
    with pytest.raises(DataError, match=f"{missing}: is not there"):
        main(arguments)
