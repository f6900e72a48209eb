"""A training that a signal ends at a random moment and that is resumed ends bit for bit as one left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conftest import TINY
from tests.engine.processes import completed, started
from tests.engine.training.test_resume import assert_same_end

SHORT = ["--optim.epochs.seg", "1", "--optim.epochs.cls", "1"]
SEEDS = [seed if seed < 5 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(30)]


@pytest.fixture(scope="module")
def alone(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Folder of a run that nothing disturbs, and the seconds it takes."""
    runs = tmp_path_factory.mktemp("alone")
    began = time.monotonic()
    assert completed([*TINY, "--data.root", str(drawn), "--runs", str(runs), "--name", "tiny", *SHORT]) == 0
    return runs / "tiny", time.monotonic() - began


def interrupted(arguments: list[str], kind: signal.Signals, due: Callable[[], bool]) -> int | None:
    """Exit code of a run that gets a signal as soon as it is due, unless it has ended by then."""
    process = started(arguments)
    while process.is_alive() and not due():
        process.join(0.01)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, kind)
    process.join(280)
    return process.exitcode


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_a_random_moment(seed: int, tiny: list[str], alone: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = alone
    moment = time.monotonic() + random.Random(seed).uniform(0, seconds)
    code = interrupted([*tiny, *SHORT, "--resume"], signal.SIGKILL, lambda: time.monotonic() >= moment)
    assert code in (-signal.SIGKILL, 0)
    assert completed([*tiny, *SHORT, "--resume"]) == 0
    folder = tmp_path / "runs" / "tiny"
    assert_same_end(folder, whole)
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(
    kind: signal.Signals, code: int, tiny: list[str], alone: tuple[Path, float], tmp_path: Path
) -> None:
    whole, _ = alone
    folder = tmp_path / "runs" / "tiny"
    assert interrupted([*tiny, *SHORT], kind, (folder / "seg.pt").exists) == code
    assert not list(folder.glob("*.tmp"))
    assert completed([*tiny, *SHORT, "--resume"]) == 0
    assert_same_end(folder, whole)
