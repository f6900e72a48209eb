"""Curves of a run: how far each metric falls after its own stage, and how each loss term falls within a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from engine.evaluation.metrics import HEADLINE
from engine.experiments.tables import LIMIT
from engine.tracking.plots import CURVES, pyplot

Rows = Sequence[Mapping[str, Any]]
WIDTH, HEIGHT = 100, 24
"""Of a loss term's curve."""


def plot_panels(
    rows: Rows, references: Mapping[str, tuple[str, float]], file: BytesIO | Path, others: Sequence[Rows] = ()
) -> None:
    """Draw one panel a task on its own scale over all epochs, stage borders marked; a falling curve is forgetting.

    references: by metric, the name and the value of what it is measured against: a line with a band of 5 % below it.
    others: rows of the same chain with other seeds, drawn thin.
    """
    begins, end = stage_borders(rows)
    figure, panels = pyplot().subplots(1, len(HEADLINE), figsize=(11, 3.1))
    figure.subplots_adjust(left=0.045, right=0.99, top=0.83, bottom=0.15, wspace=0.19)
    for (task, metric), axes in zip(HEADLINE.items(), panels):
        shown = [metric, "AP50"] if task == "det" else [metric]
        for name, *style in (curve for curve in CURVES if curve[0] in shown):
            for run in others:
                plot_curve(axes, run, begins, name, "", style[1], style[2], linewidth=0.8, alpha=0.6)
            plot_curve(axes, rows, begins, name, *style, linewidth=2, label=name)
            if name in references:
                plot_reference(axes, *references[name])
        borders = [*begins.values(), end]
        for stage, begin, after in zip(begins, borders, borders[1:]):
            middle, above = (begin + after + 1) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.02, stage, ha="center", va="bottom", transform=above, color="0.35", fontsize=9)
            if begin:
                axes.axvline(begin + 0.5, color="0.6", linewidth=0.8)
        axes.set_title(metric, pad=18, fontsize=11)
        axes.set(xlabel="epoch of the run", ylim=(0, 1.05 * axes.get_ylim()[1]), xlim=(0.5, end + 0.5))  # room above
        axes.grid(axis="y", color="0.93")
        handles = {text: handle for handle, text in zip(*axes.get_legend_handles_labels())}  # names once
        if handles:
            axes.legend(handles.values(), handles, fontsize=8, framealpha=0.8)
    figure.savefig(file, dpi=130)
    pyplot().close(figure)


def stage_borders(rows: Rows) -> tuple[dict[str, int], int]:
    """The epochs of a run before each stage, and all of them."""
    lengths: dict[str, int] = {}
    for row in rows:
        lengths[row["stage"]] = max(row["epoch"], lengths.get(row["stage"], 0))
    begins = {stage: sum(list(lengths.values())[:i]) for i, stage in enumerate(lengths)}
    return begins, sum(lengths.values())


def plot_curve(
    axes: Any, rows: Rows, begins: Mapping[str, int], name: str, marker: str, line: str, colour: str, **look: Any
) -> None:
    """Draw one metric of one run."""
    points = [(begins[r["stage"]] + r["epoch"], r[name]) for r in rows if r.get(name) is not None]
    if points:
        axes.plot(*zip(*points), marker=marker, linestyle=line, color=colour, markersize=5, **look)


def plot_reference(axes: Any, name: str, value: float) -> None:
    """Draw what a metric is measured against, and the band that a drop within the limit stays in."""
    axes.axhspan((1 - LIMIT) * value, value, color="0.88", label=f"{LIMIT:.0%} below")
    axes.axhline(value, color="0.35", linewidth=1, linestyle=(0, (6, 3)), label=name)


def loss_terms(rows: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    """By term and stage: its first and last value, and a curve as points; a term has one scale in all stages."""
    terms: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for term, value in row.get("losses", {}).items():
            terms.setdefault(term, {}).setdefault(row["stage"], []).append(value)
    found = {}
    for term, stages in terms.items():
        highest = max(max(values) for values in stages.values())
        found[term] = {
            stage: {"first": values[0], "last": values[-1], "points": points(values, highest)}
            for stage, values in stages.items()
        }
    return found


def points(values: Sequence[float], highest: float) -> str:
    """Values as the points of a polyline, 0 at the bottom of its picture and `highest` at the top."""
    values = list(values) * 2 if len(values) == 1 else values  # a point alone would not be seen
    step, scale = WIDTH / max(1, len(values) - 1), (HEIGHT - 2) / highest if highest > 0 else 0
    return " ".join(f"{i * step:.1f},{HEIGHT - 1 - max(0.0, value) * scale:.1f}" for i, value in enumerate(values))
