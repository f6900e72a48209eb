"""Coverage-guided fuzzing of everything that reads foreign files: no find among a fixed number of inputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has wheels for Linux only")
ROOT = Path(__file__).parents[2]
TARGETS = {
    "coco_json",
    "mask",
    "layout",
    "config",
    "checkpoint",
    "coco_altered",
    "config_altered",
    "checkpoint_altered",
    "yolo_text",
    "voc_xml",
}


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("inputs", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_input_is_a_find(inputs: int, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", str(inputs), str(tmp_path / "fuzz")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs
    assert int(runs[1]) >= inputs  # libFuzzer may run a few more
    counts = dict(line.rsplit(": ", 1) for line in (tmp_path / "fuzz" / "count.txt").read_text().splitlines())
    assert {name.rsplit(" ", 1)[0] for name in counts} == TARGETS
    assert all(f"{name} accepted" in counts for name in TARGETS - {"checkpoint"}), counts
