"""Where a run's figures go: metrics.jsonl, a progress bar, and Weights & Biases if asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.config import TrackConfig
from engine.errors import UserError

Row = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once, never leaving half of it. Raises UserError naming the file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}. Free space or choose another folder with --runs"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


class Tracker:
    """Records one row per epoch in the run folder, and on Weights & Biases unless that is disabled.

    wandb is imported only when it is used; without an account, `offline` keeps everything in `wandb/` for a later
    `wandb sync`, and nothing here depends on it.
    """

    def __init__(
        self, folder: Path, config: TrackConfig, run_config: Mapping[str, Any], rows: list[Row], is_main: bool = True
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.run: Any = None
        if config.wandb != "disabled" and is_main:
            import wandb

            self.run = wandb.init(
                project=config.project,
                name=folder.name,
                id=folder.name,
                resume="allow",
                mode=config.wandb,
                dir=str(folder),
                config=dict(run_config),
            )
            self.run.define_metric("epoch_of_run")
            self.run.define_metric("*", step_metric="epoch_of_run")

    def log(self, row: Row) -> None:
        """Add one epoch's figures."""
        self.rows.append(row)
        self.write()
        if self.run is not None:
            self.run.log({**row, "epoch_of_run": len(self.rows)})

    def write(self) -> None:
        """Write metrics.jsonl anew from all rows, so that a resumed run never holds an epoch twice."""
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))

    def close(self) -> None:
        """Finish the Weights & Biases run."""
        if self.run is not None:
            self.run.finish()
