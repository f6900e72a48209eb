"""What a run says of itself in figures: rows of metrics, what was kept of each task, minutes."""

from __future__ import annotations

import math
from typing import Any

from engine.evaluation.bootstrap import plain_drop
from engine.evaluation.evaluate import Evaluation
from engine.evaluation.metrics import HEADLINE
from engine.experiments.tables import within_limit
from engine.tracking.tracker import Row

JOINT = "joint"
"""Stage that learns all tasks at once; no remedy is needed, so it is a reference row."""


def rounded(evaluation: Evaluation) -> Row:
    """All metrics as they are written down; undefined ones are None."""
    return {k: None if math.isnan(v) else round(v, 5) for k, v in evaluation.scores.items()}


def headline(row: Row) -> str:
    """The metrics of a row that people look at first, as text."""
    return ", ".join(f"{m} {row[m]:.3f}" for m in ("mIoU", "mAP", "AP50", "Top-1") if row.get(m) is not None)


def last_seconds(rows: list[Row]) -> dict[str, float]:
    """Training time of each stage, in seconds."""
    return {r["stage"]: r["seconds"] for r in rows}


def drops(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """For each task trained: value after its own stage, final value, both drops, and whether they are <= 5 %.

    What was 0 after its own stage has learnt nothing and does not pass.
    """
    table: dict[str, dict[str, Any]] = {}
    for task, metric in HEADLINE.items():
        own = [r[metric] for r in rows if metric in r and r["stage"] in (task, JOINT)]
        if not own:
            continue
        drop = plain_drop(own[-1] or 0.0, rows[-1][metric] or 0.0)
        table[task] = {
            "metric": metric,
            "after_own_stage": drop["before"],
            "final": drop["after"],
            "drop_points": round(drop["points"], 2),
            "drop_relative": round(drop["relative"], 4),
            "passed": within_limit(drop),
        }
    return table
