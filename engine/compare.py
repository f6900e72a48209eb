"""Remedies side by side: every variant of a grid as a chain of stages, against single-task baselines.

    python -m engine.compare configs/compare.yaml --data.root data

First each task is trained alone, without remedies, for every seed; a chain takes over its first stage from there if it
would train it the same way. Then every variant. Results are small files in results/<grid's name>/; what is there
already is not trained again. Table, plot and report.html are made from these files alone. On another machine, where
only these files are, a chain trains its first stage itself, and drops against what was trained elsewhere have no
interval.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.types import TASKS, Task
from engine.evaluation.bootstrap import Drop, paired_drop, plain_drop
from engine.evaluation.evaluate import Evaluation, Evaluator
from engine.evaluation.metrics import HEADLINE
from engine.experiments.cells import FROM_SUMMARY, Cell, Grid, given_settings, read_grid, run_cell, to_options
from engine.experiments.tables import comparison_table
from engine.report.chain import REPORT, write_report
from engine.report.comparison import write_comparison
from engine.settings.config import Config
from engine.settings.options import build_parser, to_config
from engine.storage.checkpoint import load, load_model
from engine.storage.errors import UserError, noted, run_cli
from engine.storage.files import write_text
from engine.tracking.plots import plot_comparison
from engine.training.sets import read_sets
from engine.training.summary import JOINT

OFF = {
    **{f"continual.{name}": 0 for name in ("distill", "replay", "hold", "recall")},
    **{f"optim.shared_lr.{stage}": 1.0 for stage in (*TASKS, JOINT)},
}
"""What takes the remedies that are on by default, slow shared weights among them, out of a baseline."""
BASE = "single-task"


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its last evaluation, and its weights if they are on this machine."""

    row: dict[str, Any]
    weights: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then write table, plot and report."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("grid", type=Path, help="YAML file of the grid")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders lie")
    parser.add_argument("--only", metavar="CELL", help="one cell, such as ewc-all-s0, with the baselines it needs")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these seeds of the grid")
    args, options = parser.parse_known_args(argv)
    grid = read_grid(args.grid).only(args.seeds)
    if grid.stages != ["all"]:
        raise UserError(f"{args.grid}: stages is {grid.stages}, but a comparison trains all: leave the line out")
    grid = replace(grid, settings={**grid.settings, "track.group": grid.name, **given_settings(options)})
    folder = args.results / grid.name
    for cell in chosen(cells(grid), args.only):
        chain(grid, cell, args.results, args.runs)
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    text = comparison_table(results)
    write_text(folder / "table.md", text)
    with noted("no plot is drawn"):
        plot_comparison(results, folder / "comparison.png")
    with noted("no report is written"):
        command = shlex.join(["python", "-m", "engine.compare", *(sys.argv[1:] if argv is None else argv)])
        write_comparison(results, folder / REPORT, grid.name, command)
    print(text)
    return 0


def cells(grid: Grid) -> list[Cell]:
    """Baselines and chains, seed by seed."""
    found = []
    expert = resolved(grid, Cell(BASE, "all", 0, grid.settings)).continual.expert
    for seed in grid.seeds:
        base = {**grid.settings, **OFF, "track.wandb": "disabled"}
        base.pop("order", None)
        base |= {"continual.expert": 0} if expert else {}
        found += [Cell(BASE, task, seed, base) for task in TASKS]
        for variant, changes in grid.variants.items():
            settings = {**grid.settings, **(changes or {})}
            found.append(Cell(variant, str(settings.pop("stage", "all")), seed, settings))
    return found


def chosen(all_cells: list[Cell], only: str | None) -> list[Cell]:
    """All cells, or one with the baselines of its seed. Raises UserError for a name that none has."""
    wanted = next((c for c in all_cells if c.name == only), None)
    if only is None:
        return all_cells
    if wanted is None:
        raise UserError(f"--only {only}: there is no such cell; choose one of {', '.join(c.name for c in all_cells)}")
    return [c for c in all_cells if c is wanted or (c.variant == BASE and c.seed == wanted.seed)]


def chain(grid: Grid, cell: Cell, results: Path, runs: Path) -> None:
    """Train one cell, a chain from the baseline of its first task on, and add its drops to its result."""
    folder = runs / grid.run(cell)
    if cell.variant == BASE:
        run_cell(grid, cell, results, runs)
        return
    order = resolved(grid, cell).order
    target = results / grid.name / f"{cell.name}.json"
    bases = {task: Cell(BASE, task, cell.seed, {}) for task in order}
    singles = {
        task: stage_results(results / grid.name / f"{base.name}.json", runs / grid.run(base))[task]
        for task, base in bases.items()
    }
    first = singles[order[0]].weights
    fresh = not target.exists() and not (folder / f"{order[0]}.pt").exists()
    if fresh and first and cell.stage == "all" and starts_like_baseline(grid, cell, order[0]):
        folder.mkdir(parents=True, exist_ok=True)
        for kind in (".pt", ".json"):
            if first.with_suffix(kind).is_file():  # the latter is only for the report
                shutil.copyfile(first.with_suffix(kind), folder / f"{order[0]}{kind}")
    result = run_cell(grid, cell, results, runs)
    own = stage_results(target, folder)
    last = list(own.values())[-1]
    if last.weights:
        with noted("the chain's report stays without single-task values"):
            write_report(folder, {HEADLINE[task]: end.row[HEADLINE[task]] for task, end in singles.items()})
    result["drops"] = drops(result.get("drops", {}), singles, last)
    if cell.stage != JOINT:
        result["own_drops"] = drops(result.get("own_drops", {}), {task: own[task] for task in order}, last)
    write_text(target, json.dumps(result, indent=1) + "\n")


def stage_results(record: Path, folder: Path) -> dict[str, StageResult]:
    """The stages of a result; `folder` has their weights if it is of the very same training."""
    result, summary = json.loads(record.read_text()), folder / "summary.json"
    summary_here = json.loads(summary.read_text()) if summary.exists() else {}
    here = all(summary_here.get(key) == result[key] for key in FROM_SUMMARY)
    found = {}
    for row in result["rows"]:
        weights = folder / f"{row['stage']}.pt"
        found[row["stage"]] = StageResult(row, weights if here and weights.exists() else None)
    return found


def resolved(grid: Grid, cell: Cell) -> Config:
    """All settings of a cell: the grid's file, then its own."""
    parser = build_parser("", "")
    return to_config(parser, parser.parse_args(["--config", grid.config, *to_options(cell.settings)]))


def starts_like_baseline(grid: Grid, cell: Cell, first: Task) -> bool:
    """Whether a chain trains its first stage as the baseline of that task is trained.

    Cells of one grid may differ from it in what does nothing in a first stage: other stages' rates and passes, the
    probe, most remedies.
    """
    config, settings = resolved(grid, cell), cell.settings
    remedies = config.continual
    others = [f"optim.{kind}.{s}" for kind in ("shared_lr", "epochs") for s in (*TASKS, JOINT) if s != first]
    changed = {key for key in settings if settings[key] != grid.settings.get(key)} - {"order", "optim.probe", *others}
    return (
        not remedies.expert
        and not remedies.hold
        and not remedies.recall
        and remedies.freeze_statistics != "always"
        and getattr(config.optim.shared_lr, first) == 1.0
        and all(key.startswith(("continual.", "track.")) for key in changed - {f"optim.shared_lr.{first}"})
    )


def drops(known: Mapping[str, Drop], before: Mapping[Task, StageResult], last: StageResult) -> dict[str, Drop]:
    """What the end of a chain lost against other ends, one for each task, with intervals; `known` ones stay.

    Where weights are on another machine: from the values that were recorded, without an interval.
    """
    found: dict[str, Drop] = {}
    final: Evaluation | None = None
    for task, end in before.items():
        metric = HEADLINE[task]
        if metric in known and known[metric]["points_interval"]:
            found[metric] = known[metric]
        elif end.weights and last.weights:
            final = final or scored(last.weights, list(before))
            first = scored(end.weights, [task])
            found[metric] = paired_drop(first.per_image[task], final.per_image[task], metric)
        else:
            found[metric] = plain_drop(end.row[metric], last.row[metric])
    return found


def scored(path: Path, tasks: Sequence[Task]) -> Evaluation:
    """A checkpoint's performance on the sets that its run evaluated."""
    content = load(path)
    parser = build_parser("", "")
    config = to_config(parser, parser.parse_object(content["config"]))
    sets = {task: held for task, held in read_sets(config)[1].items() if task in tasks}
    return Evaluator(sets, config.data.size).run(load_model(path))


if __name__ == "__main__":
    sys.exit(run_cli(main))
