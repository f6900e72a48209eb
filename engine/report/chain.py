"""The page of a chain of stages, from what its run folder holds; it can be written anew at any time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from engine.evaluation.bootstrap import plain_drop
from engine.evaluation.metrics import HEADLINE
from engine.experiments.cells import to_options
from engine.experiments.tables import SHOWN, signed, within_limit
from engine.report.curves import loss_terms, plot_panels
from engine.report.page import chart, plain, render
from engine.settings.config import changed_settings
from engine.storage.files import write_text
from models.postprocess import THRESHOLD

REPORT = "report.html"
PLACES = ("name", "runs")
"""Settings of no consequence but where a run lies."""
Values = dict[str, Any]


def write_report(folder: Path, alone: Mapping[str, float | None] | None = None) -> None:
    """Write a run's report.html.

    alone: by metric, what a single-task network of the same start and budget reaches, where that is known.
    """
    write_text(folder / REPORT, render("chain.html", **report_values(folder, alone or {})))


def report_values(folder: Path, alone: Mapping[str, float | None]) -> Values:
    """What the page shows, from the files of a run."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    records = {s: json.loads(p.read_text()) for s in stages if (p := folder / f"{s}.json").is_file()}
    drops = drop_rows(summary["tasks"], alone)
    references = {row["metric"]: reference(row) for row in drops}
    changed = changed_settings(settings)
    return {
        "name": folder.name,
        "summary": summary,
        "sets": next((record["sets"] for record in reversed(records.values())), {}),
        "commands": commands(changed, stages, settings["order"], summary.get("overfit", 0)),
        "curves": chart(partial(plot_panels, rows, references), "curves"),
        "drops": drops,
        "shown": SHOWN,
        "signed": signed,
        "ends": [row for row in rows if row["epoch"] == last_epoch(rows, row["stage"])],
        "classes": {task: class_rows(records, task, stages) for task in HEADLINE},
        "stages": stages,
        "losses": loss_terms(rows),
        "pictures": picture_rows(records),
        "threshold": next((record.get("threshold", THRESHOLD) for record in records.values()), THRESHOLD),
        "settings": {key: tuple(map(plain, pair)) for key, pair in changed.items() if key not in PLACES},
    }


def last_epoch(rows: Sequence[Values], stage: str) -> int:
    """The newest epoch of a stage."""
    return max(int(row["epoch"]) for row in rows if row["stage"] == stage)


def drop_rows(tasks: Mapping[str, Values], alone: Mapping[str, float | None]) -> list[Values]:
    """One row a task that was learnt: its metric's drop by both readings of the rule, None where one is not known."""
    found = []
    for task, values in tasks.items():
        metric, final = values["metric"], values["final"]
        bases = {"own": values["after_own_stage"], "alone": alone.get(metric)}
        readings = {name: None if base is None else verdict(base, final) for name, base in bases.items()}
        found.append({"task": task, "metric": metric, "final": final, **readings})
    return found


def verdict(before: float, after: float) -> Values:
    """A drop and whether it is within the limit."""
    drop = plain_drop(before, after)
    return {**drop, "passed": within_limit(drop)}


def reference(row: Values) -> tuple[str, float]:
    """What the curve of a metric is measured against: the single-task network where it is known."""
    return ("single-task", row["alone"]["before"]) if row["alone"] else ("after its own stage", row["own"]["before"])


def class_rows(records: Mapping[str, Values], task: str, stages: Sequence[str]) -> list[Values]:
    """One row a class: its score after the task's own stage and at the end, and how often it is in the set."""
    own = records.get(task) or records.get("joint")
    end = records.get(stages[-1])
    if own is None or end is None or task not in end["classes"]:
        return []
    found = []
    for name, scores in end["classes"][task].items():
        score, *_, count = scores
        before = own["classes"].get(task, {}).get(name, {}).get(score)
        found.append(
            {
                "class": name,
                "score": score,
                "before": before,
                "after": scores[score],
                "counted": count,
                "count": scores[count],
            }
        )
    return found


def picture_rows(records: Mapping[str, Values]) -> list[Values]:
    """The pictures, each as annotated and with what every stage predicts in it."""
    found: dict[tuple[str, str], Values] = {}
    for stage, record in records.items():
        for picture in record["pictures"]:
            row = found.setdefault((picture["task"], picture["file"]), {**picture, "stages": {}})
            row["stages"][stage] = picture["predicted"]
    return list(found.values())


def commands(
    changed: Mapping[str, tuple[Any, Any]], stages: Sequence[str], order: Sequence[str], overfit: int
) -> list[str]:
    """Commands that train the same again, whatever files the settings came from."""
    settings = to_options({key: value for key, (_, value) in changed.items()})
    whole = ["all"] if set(stages) == set(order) else stages
    what = [["--overfit", str(overfit)]] if overfit else [["--stage", stage] for stage in whole]
    return [shlex.join(["python", "-m", "engine.train", *words, *settings]) for words in what]
