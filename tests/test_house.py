"""The shape of the house: who may import whom, one list of dependencies, nothing of one machine in the files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # in the standard library since Python 3.11

ROOT = Path(__file__).parents[1]
ROOMS = {"models", "data", "continual", "engine"}
MAY_IMPORT = {
    "models": {"models"},
    "data": {"data"},
    "continual": {"continual", "models"},
    "engine": {"engine", "continual", "models", "data"},
}


def rooms_imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found & ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_run_one_way(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert rooms_imported(path) <= MAY_IMPORT[room], path


def test_requirements_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == project["dependencies"]


def test_pins_name_no_address_and_cover_the_dependencies() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert "://" not in pins
    assert "@" not in pins
    pinned = {line.split("==")[0].lower() for line in pins.splitlines() if "==" in line}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.split(r"[\[><=!]", line)[0].lower() in pinned, line


def test_installing_adds_no_top_level_package() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tool["packages"] == []


def test_functions_and_files_stay_readable() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert text.count("\n") <= 320, f"{path} is long: one idea a file"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                    assert node.end_lineno - node.lineno < 60, f"{path}:{node.name} is long"
