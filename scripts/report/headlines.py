"""The tables of README and notebook that say how well the recipes do: records in results/ -> Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from engine.experiments.tables import markdown, number
from scripts.report.tables import OWN, RECIPE, SHOWN, grid

FIRST = {
    ("final", RECIPE): ("Fast-SCNN", "[literal](configs/default.yaml)"),
    ("final", "strict"): ("Fast-SCNN", "[strict](configs/strict.yaml)"),
    ("final-lite0", RECIPE): ("EfficientNet-Lite0", "[literal](configs/lite0.yaml)"),
    ("final-lite0-320", RECIPE): ("EfficientNet-Lite0", "[strict](configs/final_lite0.yaml)"),
}
"""Folders and variants of the README's first table: backbone, and how the limit on replay is read."""


def headline(folder: Path) -> str:
    """One row a metric: each task alone, right after its own stage and at the end of the chain, and what changed."""
    cells = {(r["variant"], r["stage"], r["seed"]): r["rows"] for r in grid(folder)}
    chains = {seed: rows for (variant, _, seed), rows in cells.items() if variant == RECIPE}
    rows = [["", "alone", "after its own stage", "at the end", "end against alone", "end against own stage"]]
    for metric, stage in OWN.items():
        alone = [cells["single-task", stage, seed][-1][metric] for seed in chains]
        own = [next(row[metric] for row in chain if row["stage"] == stage) for chain in chains.values()]
        end = [chain[-1][metric] for chain in chains.values()]
        rows.append([metric, number(alone), number(own), number(end), change(alone, end), change(own, end)])
    return "\n".join(markdown(rows))


def first(results: Path) -> str:
    """One row a recipe: each metric at the end of its chains and, in brackets, of each task alone; means over seeds."""
    rows = [["backbone", "replay", "seeds", *SHOWN]]
    for (folder, variant), words in FIRST.items():
        cells = grid(results / folder)
        ends = {m: [r["rows"][-1][m] for r in cells if r["variant"] == variant] for m in SHOWN}
        alone = {
            m: [r["rows"][-1][m] for r in cells if (r["variant"], r["stage"]) == ("single-task", OWN[m])] for m in SHOWN
        }
        means = {m: f" ({statistics.mean(values):.3f})" if values else "" for m, values in alone.items()}
        rows.append([*words, str(len(ends["mIoU"])), *(f"{statistics.mean(ends[m]):.3f}{means[m]}" for m in SHOWN)])
    return "\n".join(markdown(rows))


def stages(record: Path) -> str:
    """One row a stage of one chain: every metric after it, and the minutes that it took."""
    found = json.loads(record.with_suffix(".json").read_text())
    rows = [["after stage", *SHOWN, "minutes"]]
    last = {end["stage"]: end for end in found.get("rows") or found["evaluations"]}
    for stage, end in last.items():
        rows.append([stage, *(f"{end[m]:.3f}" for m in SHOWN), f"{found['minutes_by_stage'][stage]:.1f}"])
    return "\n".join(markdown(rows))


def scores(record: Path) -> str:
    """What one model reached on whole sets, as `eval.py --json` wrote it down."""
    found = json.loads(record.with_suffix(".json").read_text())
    return "\n".join(markdown([["weights", *SHOWN], [found["about"]["weights"], *(f"{found[m]:.3f}" for m in SHOWN)]]))


def change(before: Sequence[float], after: Sequence[float]) -> str:
    """Mean relative change, and that of every seed."""
    relative = [100 * (b / a - 1) for a, b in zip(before, after, strict=True)]
    return f"{statistics.mean(relative):+.1f} % ({', '.join(f'{r:+.1f}' for r in relative)})"
