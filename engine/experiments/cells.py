"""Trainings side by side: each a process of its own whose result is a small file; what is done already is skipped.

A grid is stopped and taken up again at any time, on another machine too, as long as the folder of results goes along.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from data.types import TASKS
from engine.evaluation.metrics import HEADLINE
from engine.storage.errors import UserError
from engine.storage.files import write_text

FROM_SUMMARY = (
    "machine",
    "device",
    "dtype",
    "threads",
    "commit",
    "torch",
    "minutes",
    "minutes_by_stage",
    "peak_memory_mib",
)
"""What a result takes over from the run's summary."""
OF_THE_GRID = ("--stage", "--config", "--seed", "--name")
"""Options of a training that its grid gives."""
Settings = Mapping[str, Any]
"""Settings by dotted key, as on the command line: {"optim.lr": 5e-4}."""


@dataclass(frozen=True)
class Grid:
    """Variants x seeds x stages.

    name: folder of results and prefix of run folders; stages: what is trained, each from the start: one task alone, or
    "all" in order; config: file of `engine.train`; settings: of every cell; variants: further settings by name;
    program: what trains a cell, `engine.train` or one with its command line.
    """

    name: str
    config: str
    seeds: list[int]
    variants: dict[str, Settings]
    stages: list[str] = field(default_factory=lambda: ["all"])
    settings: Settings = field(default_factory=dict)
    program: str = "engine.train"

    def run(self, cell: Cell) -> str:
        """Name of a cell's run folder."""
        return f"{self.name}-{cell.name}"

    def only(self, seeds: Sequence[int] | None) -> Grid:
        """The part of the grid with these of its seeds, None: all. Raises UserError for a seed it does not have."""
        for seed in seeds or ():
            if seed not in self.seeds:
                raise UserError(f"--seeds {seed}: the grid has {', '.join(map(str, self.seeds))}; choose among these")
        return replace(self, seeds=list(seeds)) if seeds else self

    def cells(self) -> list[Cell]:
        """All cells, seed by seed, so that a grid that is stopped has every variant equally often."""
        return [
            Cell(variant, stage, seed, {**self.settings, **(changes or {})})
            for seed, (variant, changes), stage in itertools.product(self.seeds, self.variants.items(), self.stages)
        ]


@dataclass(frozen=True)
class Cell:
    """One training: its place in the grid and its settings."""

    variant: str
    stage: str
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """File name of the result, without its ending."""
        return f"{self.variant}-{self.stage}-s{self.seed}"


def read_grid(path: Path) -> Grid:
    """Read a grid from a YAML file. Raises UserError when it is none."""
    try:
        grid = Grid(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path} is no grid ({text}): it needs name, config, seeds and variants") from None
    if not isinstance(grid.config, str):
        raise UserError(f"{path}: config is {grid.config}: give the path of a YAML file of settings")
    return grid


def to_options(settings: Settings) -> list[str]:
    """Settings as words of a command line."""
    return [
        word
        for key, value in settings.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def given_settings(words: Sequence[str]) -> dict[str, str]:
    """Settings from words of a command line. Raises UserError for words that are none, or that the grid gives."""
    if len(words) % 2 or not all(w.startswith("--") for w in words[::2]):
        raise UserError(f"options for the trainings come as --section.key VALUE, not {' '.join(words)}")
    for word in set(words[::2]).intersection(OF_THE_GRID):
        raise UserError(f"{word}: the grid's file gives it to every training; change it there (some seeds: --seeds)")
    return {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2])}


def run_cell(grid: Grid, cell: Cell, results: Path, runs: Path) -> dict[str, Any]:
    """The cell's result: read if there is one, else trained for. Raises UserError when the training fails."""
    target, run = results / grid.name / f"{cell.name}.json", grid.run(cell)
    order = ["--order", f"[{cell.stage}]"] if cell.stage in TASKS else []
    what = ["--stage", cell.stage, *order, "--config", grid.config, "--seed", str(cell.seed)]
    where = ["--runs", str(runs), "--name", run, "--resume"]
    own = {k: v for k, v in cell.settings.items() if not k.startswith(("data.root", "track."))}
    settings = json.loads(json.dumps(own))  # where things lie and what is tracked is no part of the result
    if target.is_file():
        found: dict[str, Any] = json.loads(target.read_text())
        if found["settings"] != settings:
            raise UserError(f"{target} is the result of {found['settings']}, not of {settings}: rename one of the two")
        return found
    words = [*what, *where, *to_options(cell.settings)]
    print(" ".join([f"python -m {grid.program}", *words]), flush=True)
    if train_in_subprocess(grid.program, words):
        raise UserError(f"the training of {run} failed, see above; run the same command again to go on from here")
    summary = json.loads((runs / run / "summary.json").read_text())
    rows = evaluations(runs / run / "metrics.jsonl")
    result = {
        "variant": cell.variant,
        "stage": cell.stage,
        "seed": cell.seed,
        "settings": settings,
        "command": " ".join([f"python -m {grid.program}", *what, *to_options(settings)]),
        **{k: summary[k] for k in FROM_SUMMARY},
        "rows": stage_ends(rows),
        "curve": curve(rows),
    }
    write_text(target, json.dumps(result, indent=1) + "\n")
    return result


def train_in_subprocess(program: str, words: Sequence[str]) -> int:
    """Run a training in a process of its own; returns its exit code."""
    return subprocess.run([sys.executable, "-m", program, *words], check=False).returncode


def evaluations(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl in which all sets were evaluated."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if set(HEADLINE.values()) & row.keys()]


def stage_ends(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last evaluation of each stage."""
    last = {row["stage"]: row for row in rows}
    return [{k: v for k, v in row.items() if k not in ("lr", "losses")} for row in last.values()]


def curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a forgetting curve shows of every evaluation."""
    return [{k: row[k] for k in ("stage", "epoch", *HEADLINE.values(), "AP50") if k in row} for row in rows]
