"""Data that changed between two stages is noticed when the later one starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.evaluation.leakage import listed
from engine.storage.checkpoint import load
from engine.storage.errors import UserError
from engine.training.run import Run


def check_data(run: Run, name: str, content: dict[str, Any] | None, path: Path) -> None:
    """Say what of the data differs from that which a stage's start was trained with.

    Other images are a note; raises UserError for other classes, for which the network has no rows.
    """
    if content is None:
        return
    for task, names in content["classes"].items():
        own = run.classes.get(task, ())
        if list(own) != list(names):
            raise UserError(
                f"stage {name}: the classes of {task} were {some(names)} when {path} was written, and are "
                f"{some(own)} in {run.config.data.root} now: give the data it was trained with, or train anew with "
                "another --name"
            )
    learnt = [task for task in run.digests if task in (*content.get("old", ()), content.get("stage"))]
    seen, now = listed(content), {digest for task in learnt for digest in run.digests[task]}
    if seen is None or not learnt:
        return
    first = run.start_file(run.config.order[0])
    inherited = (listed(load(first)) or set()) if first and first.is_file() else set()
    new, gone = len(now - seen), len(seen - now - inherited)
    if new or gone:
        run.print(
            f"note: stage {name}: the training images of {', '.join(learnt)} are not those that {path} has learnt from "
            f"({new} new, {gone} gone)"
        )


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
