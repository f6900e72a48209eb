"""Used from a folder that has its own `models` and `data`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from engine.export import export
from tests.models.builders import tiny

ROOT = Path(__file__).parents[1]
Run = subprocess.CompletedProcess[str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, whose packages must never be taken for ours."""
    for name in ("models", "data", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    return tmp_path


def run(where: Path, *words: str) -> Run:
    """A program in a folder, as an installed command sees it: nothing of this repository on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


def test_the_command_finds_its_own_packages_in_any_folder(project: Path) -> None:
    done = run(project, str(ROOT / "onehead.py"), "predict", "--help")
    assert done.returncode == 0, done.stderr
    assert "Find boxes, regions and a label" in done.stdout
    done = run(project, str(ROOT / "onehead.py"), "eval", "--weights", "missing.pt", "--data_root", ".")
    assert done.returncode == 2
    assert "missing.pt" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_tool_and_an_installation_without_files_are_refused(project: Path) -> None:
    done = run(project, str(ROOT / "onehead.py"), "fly")
    assert (done.returncode, done.stderr.split()[:2]) == (2, ["usage:", "onehead"])
    (project / "site").mkdir()
    copy = shutil.copy(ROOT / "onehead.py", project / "site")
    done = run(project, str(copy), "predict")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "`pip install -e .`" in done.stderr


def test_the_documented_program_reads_an_export_beside_other_packages(project: Path) -> None:
    export(tiny(), project / "onehead.onnx")
    Image.new("RGB", (60, 40), "red").save(project / "photo.jpg")
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "questions.md").read_text(), re.DOTALL)
    done = run(project, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in tiny().classes["cls"]
