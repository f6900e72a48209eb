"""What is only about a result (a commit, a plot, a dashboard) never ends the work, and is reported truly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import compare, train
from engine.settings.config import TrackConfig
from engine.storage.checkpoint import commit, load, provenance
from engine.tracking.tracker import Tracker

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
CONFIGS = Path(__file__).parents[2] / "configs"
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")


def repository(folder: Path) -> str:
    """A repository with one commit; returns its short hash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text(folder.name)

    def git(*words: str) -> str:
        done = subprocess.run(["git", *AUTHOR, *words], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "--message", folder.name)
    return git("rev-parse", "--short", "HEAD")


def test_the_commit_is_that_of_the_own_repository(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    found = repository(tmp_path / "own")
    assert commit(tmp_path / "own") == found
    (tmp_path / "own" / "unknown").write_text("a run's output")
    assert commit(tmp_path / "own") == found
    (tmp_path / "own" / "file").write_text("changed")
    assert commit(tmp_path / "own") == f"{found}-dirty"


def test_an_enclosing_repository_is_somebody_elses(tmp_path: Path, monkeypatch: Patch) -> None:
    repository(tmp_path)
    (tmp_path / "unpacked").mkdir()
    assert commit(tmp_path / "unpacked") is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as git's hooks set it
    assert commit(tmp_path / "unpacked") is None


def broken_git(folder: Path, monkeypatch: Patch, script: str) -> None:
    """Let `git` be a program that runs `script`, or be missing."""
    folder.mkdir()
    if script:
        (folder / "git").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.skipif(os.name != "posix", reason="shell scripts stand for git")
@pytest.mark.parametrize("script", ["", "exit 128", "echo odd", "exit 0"], ids=["missing", "failing", "odd", "silent"])
def test_without_a_working_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: Patch, script: str) -> None:
    broken_git(tmp_path / "bin", monkeypatch, script)
    assert provenance()["commit"] == "unknown"


def test_a_stage_ends_well_without_git_and_without_plots(
    tiny: list[str], tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    broken_git(tmp_path / "bin", monkeypatch, "")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # any import of it fails
    assert train.main([*tiny, "--stage", "seg"]) == 0
    printed = capsys.readouterr()
    assert "note: no plot is drawn (" in printed.err
    assert "note: no report is written (" in printed.err
    assert "minutes of training" in printed.out
    folder = tmp_path / "runs" / "tiny"
    assert load(folder / "seg.pt")["provenance"]["commit"] == "unknown"
    assert json.loads((folder / "summary.json").read_text())["commit"] == "unknown"


def test_a_dashboard_that_cannot_begin_is_done_without(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(tmp_path, TrackConfig(wandb="offline"), {}, [])
    tracker.log({"stage": "seg", "epoch": 1, "loss": 1.0})
    tracker.close()
    assert capsys.readouterr().err.startswith("note: Weights & Biases is not used (")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_whatever_a_dashboard_raises_ends_only_the_dashboard(tmp_path: Path, capsys: Capture) -> None:
    class Raises:
        def log(self, row: object, order: object) -> None:
            raise KeyError("odd")

    tracker = Tracker(tmp_path, TrackConfig(), {}, [])
    tracker.dashboard = Raises()  # type: ignore[assignment]
    for epoch in (1, 2):
        tracker.log({"stage": "seg", "epoch": epoch, "loss": 1.0})
    assert capsys.readouterr().out.count("note: Weights & Biases is lost ('odd')") == 1


def test_a_comparison_without_a_plot_has_its_table(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(compare, "chain", lambda *_: None)
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"name: none\nconfig: {CONFIGS / 'fast.yaml'}\nseeds: [0]\nvariants: {{}}\n")
    assert compare.main([str(grid), "--results", str(tmp_path), "--runs", str(tmp_path)]) == 0
    assert (tmp_path / "none" / "table.md").is_file()
    printed = capsys.readouterr().err
    assert "note: no plot is drawn (" in printed
    assert "note: no report is written (" in printed
