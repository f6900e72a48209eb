"""Grids of trainings: cells, skipped work, one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from engine.experiments.cells import read_grid, run_cell, to_options
from engine.storage.errors import UserError
from engine.train import main as train
from scripts.search import main, table
from tests.engine.conftest import TINY, nested


@pytest.fixture
def grid_file(drawn: Path, tmp_path: Path) -> Path:
    """Two variants of the tiniest segmentation stage."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(nested([*TINY, "--data.root", str(drawn)])))
    grid = {
        "name": "lr",
        "stages": ["seg"],
        "config": str(config),
        "seeds": [3],
        "settings": {"optim.epochs.seg": 1},
        "variants": {"slow": {"optim.lr": 0.0001}, "fast": {"optim.lr": 0.01}},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


def test_cells_go_seed_by_seed(grid_file: Path):
    grid = yaml.safe_load(grid_file.read_text()) | {"seeds": [0, 1], "stages": ["seg", "all"]}
    grid_file.write_text(yaml.safe_dump(grid))
    names = [c.name for c in read_grid(grid_file).cells()]
    assert names[:4] == ["fast-seg-s0", "fast-all-s0", "slow-seg-s0", "slow-all-s0"]
    assert names[4] == "fast-seg-s1"
    assert len(names) == 8


def test_some_seeds_of_a_grid(grid_file: Path):
    grid_file.write_text(yaml.safe_dump(yaml.safe_load(grid_file.read_text()) | {"seeds": [0, 1, 2]}))
    grid = read_grid(grid_file)
    assert {c.seed for c in grid.only([2, 0]).cells()} == {0, 2}
    assert grid.only(None) == grid
    with pytest.raises(UserError, match="--seeds 5: the grid has 0, 1, 2; choose among these"):
        grid.only([5])


def test_a_grid_is_trained_once_and_then_read(
    grid_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "engine.experiments.cells.train_in_subprocess", lambda _, words: train(words)
    )  # imports take longer
    results = tmp_path / "results"
    arguments = [str(grid_file), "--results", str(results), "--runs", str(tmp_path / "runs")]
    assert main(arguments) == 0
    first = capfd.readouterr().out
    assert [line.split()[0] for line in first.splitlines()[-3:]] == ["seg", "fast", "slow"]
    files = sorted((results / "lr").iterdir())
    assert [f.name for f in files] == ["fast-seg-s3.json", "slow-seg-s3.json"]
    cell = json.loads(files[0].read_text())
    assert cell["rows"][-1]["stage"] == "seg"
    assert cell["curve"][-1] == {k: cell["rows"][-1][k] for k in ("stage", "epoch", "mIoU", "mAP", "AP50", "Top-1")}
    assert "--optim.lr 0.01" in cell["command"]
    written = [f.stat().st_mtime_ns for f in files]
    assert main(arguments) == 0
    assert [f.stat().st_mtime_ns for f in files] == written
    assert "python -m engine.train" not in capfd.readouterr().out


def test_a_result_of_other_settings_is_not_taken_for_the_cells_own(grid_file: Path, tmp_path: Path):
    grid = read_grid(grid_file)
    cell = grid.cells()[0]
    target = tmp_path / "lr" / f"{cell.name}.json"
    target.parent.mkdir()
    target.write_text(json.dumps({"settings": {"optim.lr": 7}}))
    with pytest.raises(UserError, match=r"'optim\.lr': 7"):
        run_cell(grid, cell, tmp_path, tmp_path / "runs")


def test_a_failed_training_names_the_remedy(grid_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture):
    where = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    with pytest.raises(UserError, match="run the same command again"):
        main([str(grid_file), *where, "--data.root", str(tmp_path / "nowhere")])
    assert not (tmp_path / "results").exists()


def test_options_are_words_of_the_command_line():
    options = to_options({"init": "stage0", "order": ["det"], "optim.lr": 0.001, "data.holdout": True, "a": None})
    words = '--init stage0 --order ["det"] --optim.lr 0.001 --data.holdout true --a null'
    assert options == words.split()


@pytest.mark.parametrize("text", ["- 1", "name: x", "name: [", "name: x\nnothing: 1"])
def test_a_file_that_is_no_grid(tmp_path: Path, text: str):
    path = tmp_path / "g.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"g\.yaml is no grid"):
        read_grid(path)


def test_a_grid_whose_settings_are_no_file(tmp_path: Path):
    path = tmp_path / "g.yaml"
    path.write_text("name: x\nconfig: {}\nseeds: [0]\nvariants: {}\n")
    with pytest.raises(UserError, match=r"g\.yaml: config is \{\}: give the path of a YAML file"):
        read_grid(path)


def test_stray_options_are_refused(grid_file: Path):
    with pytest.raises(UserError, match="options for the trainings"):
        main([str(grid_file), "stray"])


@pytest.mark.parametrize("option", ["--seed", "--name", "--stage", "--config"])
def test_what_the_grid_gives_is_no_option_of_its_trainings(grid_file: Path, option: str):
    with pytest.raises(UserError, match=f"{option}: the grid's file gives it to every training"):
        main([str(grid_file), option, "3"])  # --seed is not short for --seeds


def test_a_stage_that_is_none_is_refused_before_anything_is_trained(grid_file: Path):
    grid_file.write_text(yaml.safe_dump(yaml.safe_load(grid_file.read_text()) | {"stages": ["seg", "boxes"]}))
    with pytest.raises(UserError, match="stages has 'boxes'; choose among seg, det, cls, all, joint"):
        main([str(grid_file)])


def test_a_joint_stage_shows_what_a_chain_shows():
    row = {"mIoU": 0.25, "AP50": 0.5, "mAP": 0.125, "Top-1": None}
    text = table("joint", {"a": [{"rows": [row], "minutes": 2}]})
    assert text.splitlines()[1].split()[2:6] == ["mIoU", "AP50", "mAP", "Top-1"]
    assert text.splitlines()[2].split()[2::2] == ["0.2500", "0.5000", "0.1250", "0.0000", "2.0"]
