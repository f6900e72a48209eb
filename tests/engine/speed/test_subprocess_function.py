"""A function in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.speed.subprocess_function import SubprocessFunction


def note_down(file: Path) -> Callable[[], object]:
    """A function that appends the number of its process to a file."""

    def run() -> None:
        with file.open("a") as out:
            out.write(f"{os.getpid()}\n")

    return run


def fail() -> Callable[[], object]:
    raise ValueError("not today")


def test_it_runs_once_a_call_in_one_other_process(tmp_path: Path) -> None:
    run = SubprocessFunction(note_down, tmp_path / "calls")
    before = len((tmp_path / "calls").read_text().split())
    for _ in range(3):
        run()
    callers = (tmp_path / "calls").read_text().split()
    assert len(callers) == before + 3
    assert len(set(callers)) == 1
    assert callers[0] != str(os.getpid())


def test_what_fails_over_there_is_not_waited_for_here(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="other process"):
        SubprocessFunction(fail)
    assert "not today" in capfd.readouterr().err
