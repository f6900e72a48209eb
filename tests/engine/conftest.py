"""A tiny world: drawn sets of a few images and a network that trains in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.synthetic import main as draw
from engine.settings.options import build_parser, to_config
from engine.train import main as train
from engine.training.run import Run

TINY = (  # noqa: SIM905
    "--data.size 64 --model.dim 32 --model.heads 2 --model.hidden 64 --model.queries 10 --optim.batch 4 "
    "--optim.epochs.seg 2 --optim.epochs.det 2 --optim.epochs.cls 2 --track.evals 1 --track.save_seconds 0 "
    "--continual.replay 3 --continual.replay_sets 0 --continual.recall 0 --precision fp32 --init null"
).split()


def run_of(arguments: Sequence[str]) -> Run:
    """The run that command-line arguments ask for."""
    parser = build_parser("", "")
    return Run(to_config(parser, parser.parse_args(list(arguments))))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the three drawn sets: 12 training and 5 evaluation images each."""
    root = tmp_path_factory.mktemp("drawn") / "sets"
    draw(["--root", str(root), "--train", "12", "--val", "5", "--size", "64"])
    return root


@pytest.fixture(scope="session")
def untouched(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole chain that nothing interrupted; copy it to change it."""
    runs = tmp_path_factory.mktemp("untouched")
    train([*TINY, "--data.root", str(drawn), "--runs", str(runs), "--name", "tiny"])
    return runs / "tiny"


def nested(words: Sequence[str]) -> dict[str, Any]:
    """Settings of a command line as a file holds them."""
    tree: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2]):
        at, (*parents, last) = tree, name.removeprefix("--").split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = yaml.safe_load(value)
    return tree


@pytest.fixture
def tiny(drawn: Path, tmp_path: Path) -> list[str]:
    """Arguments of a training run that takes seconds; its folder is tmp_path / "runs" / "tiny"."""
    return [*TINY, "--data.root", str(drawn), "--runs", str(tmp_path / "runs"), "--name", "tiny"]
