"""Where a run's figures go: metrics.jsonl and <stage>.json always, Weights & Biases if asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.evaluation.evaluate import Evaluation, Evaluator
from engine.settings.config import TrackConfig
from engine.storage.errors import first_line, noted
from engine.storage.files import write_text
from engine.tracking.dashboard import Dashboard
from engine.tracking.record import stage_record
from models.onehead import OneHead

Row = dict[str, Any]


class Tracker:
    """Records one row per epoch in the run folder, and on Weights & Biases unless that is disabled."""

    def __init__(
        self, folder: Path, config: TrackConfig, run_config: Mapping[str, Any], rows: list[Row], is_main: bool = True
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.order = list(run_config.get("order", []))
        self.dashboard: Dashboard | None = None
        if config.wandb != "disabled" and is_main:
            with noted("Weights & Biases is not used"):
                self.dashboard = Dashboard(folder, config, run_config)

    def log(self, row: Row, steps: int = 0) -> None:
        """Add one epoch's figures, which `steps` optimiser steps have made."""
        row["global_step"] = steps + (self.rows[-1].get("global_step", 0) if self.rows else 0)
        self.rows.append(row)
        self.write()
        self.show(lambda dashboard: dashboard.log(row, self.order))

    def stage_end(self, evaluation: Evaluation, evaluator: Evaluator, model: OneHead) -> None:
        """Record what a stage ended with, beyond its row."""
        with noted("the report will lack this stage's classes and pictures"):
            found = stage_record(evaluation, evaluator.task_sets, model)
            write_text(self.folder / f"{self.rows[-1]['stage']}.json", json.dumps(found) + "\n")
        self.show(lambda dashboard: dashboard.stage_end(self.rows[-1], evaluation, evaluator, model))

    def show(self, log: Callable[[Dashboard], None]) -> None:
        """Log something on Weights & Biases, if wanted; should that fail, the run goes on without."""
        if self.dashboard is None:
            return
        try:
            log(self.dashboard)
        except Exception as error:  # its client raises many types, and none of them is worth the run
            print(f"note: Weights & Biases is lost ({first_line(error)}); figures stay in {self.folder}/metrics.jsonl")
            self.dashboard = None

    def write(self) -> None:
        """Write metrics.jsonl anew from all rows, so that a resumed run never holds an epoch twice."""
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))

    def close(self, drops: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Finish the Weights & Biases run."""
        self.show(lambda dashboard: dashboard.finish(drops or {}))
