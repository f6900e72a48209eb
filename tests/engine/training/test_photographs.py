"""Photographs of stage 0 in a training run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.settings.config import PretrainConfig
from engine.settings.options import build_parser, to_config
from engine.storage.checkpoint import load
from engine.storage.errors import UserError
from engine.train import main
from engine.training.examples import PhotographViews
from engine.training.run import Run


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
    views = PhotographViews(PretrainConfig(sources=[str(drawn)], side=32), 64, torch.device("cpu"))
    torch.manual_seed(0)
    one, other = views(3), views(3)
    assert one.shape == (3, 3, 64, 64)
    assert one.amin() >= 0
    assert one.amax() <= 1
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(views(3), one)


def test_photographs_that_are_not_there_are_named(tiny: list[str], untouched: Path, tmp_path: Path) -> None:
    missing = tmp_path / "photos.zip"
    arguments = [*tiny, "--pretrain.sources", f"[{missing}]", "--continual.photographs", "2", "--stage", "seg"]
    arguments += ["--continual.expert", "1", "--continual.expert_seg", str(untouched / "cls.pt")]
    with pytest.raises(UserError, match=f"continual.photographs: {missing}: is not there; .* data.download --tasks"):
        main(arguments)


@pytest.mark.parametrize(
    ("stage", "options", "shown"),
    [
        ("seg", ["--continual.distill", "1"], False),
        ("joint", ["--continual.distill", "1"], False),
        ("det", ["--continual.distill", "1"], True),
        ("det", ["--continual.distill", "0", "--continual.lwf", "1"], True),
        ("seg", ["--continual.expert", "1", "--continual.expert_det", "det.pt"], False),
        ("det", ["--continual.distill", "0", "--continual.expert", "1", "--continual.expert_seg", "seg.pt"], False),
        ("joint", ["--continual.expert", "1", "--continual.expert_seg", "seg.pt"], True),
    ],
)
def test_they_are_shown_where_somebody_teaches_on_them(
    stage: str, options: list[str], shown: bool, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = build_parser("test", "")
    run = Run(to_config(parser, parser.parse_args([*tiny, "--continual.photographs", "2", *options])))
    assert run.shows_photographs(stage, ("seg",) if stage == "det" else ()) == shown
    assert (f"stage {stage}: no photographs are shown" in capsys.readouterr().out) == (not shown)
