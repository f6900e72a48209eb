"""The shape of the house: who may import whom, one list of dependencies, nothing of one machine in the files."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from graphlib import TopologicalSorter
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


ORDER = (
    ("models", "data.classes", "data.errors", "data.pixels", "data.types"),
    ("continual", "data.images"),
    ("data.downloading", "data.layouts"),
    ("data",),
    ("engine.storage",),
    ("engine.evaluation", "engine.settings"),
    ("engine.experiments", "engine.tracking"),
    ("engine.report",),
    ("engine.training",),
    ("engine.speed",),
    ("engine",),
    ("eval", "scripts.report"),
    ("scripts",),
)
"""Each room imports only from itself and from rooms of earlier lines. A module belongs to the longest name it fits."""


def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    files = [ROOT / "eval.py", *(p for top in (*ROOMS, "scripts") for p in (ROOT / top).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def modules_imported(path: Path, known: Collection[str]) -> set[str]:
    """Modules of the program that a file imports, anywhere in it and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & set(known)) or {node.module}
    return found & set(known)


def level(module: str) -> tuple[int, str]:
    """Line in ORDER and room of a module."""
    fits = [(i, room) for i, rooms in enumerate(ORDER) for room in rooms if f"{module}.".startswith(f"{room}.")]
    return max(fits, key=lambda fit: len(fit[1]))


def test_no_module_imports_upwards() -> None:
    known = modules()
    for module, path in known.items():
        line, room = level(module)
        for other in modules_imported(path, known):
            other_line, other_room = level(other)
            assert other_room == room or other_line < line, f"{module} imports {other}"


def test_no_modules_import_in_a_circle() -> None:
    known = modules()
    TopologicalSorter({m: modules_imported(p, known) for m, p in known.items()}).prepare()  # raises CycleError


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
