"""Pictures of a run, drawn from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from engine.evaluation.metrics import HEADLINE

CURVES = (
    ("mIoU", "o", "-", "#0072B2"),
    ("mAP", "s", "--", "#D55E00"),
    ("AP50", "^", ":", "#CC79A7"),
    ("Top-1", "D", "-.", "#009E73"),
)
"""Metric, marker, line, colour: told apart in grey print and by the colour-blind (palette of Okabe and Ito)."""


def pyplot() -> Any:
    """The functions that draw, into files alone; imported late, because nothing else depends on them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_comparison(results: Sequence[dict[str, Any]], path: Path | BytesIO) -> None:
    """Draw, metric by metric, where every variant ends (filled, one mark a seed) and what it had after its own stage.

    The vertical line is the single-task baseline's mean, its band 5 % below: a mark left of the band has forgotten.
    """
    chains = [r for r in results if "drops" in r]
    names = list(dict.fromkeys(r["variant"] for r in chains))
    plt = pyplot()
    figure, all_axes = plt.subplots(
        1, len(HEADLINE), figsize=(3.6 * len(HEADLINE), 1.4 + 0.34 * len(names)), layout="constrained", sharey=True
    )
    for axes, (task, metric) in zip(all_axes, HEADLINE.items()):
        colour = next(c for m, _, _, c in CURVES if m == metric)
        axes.locator_params(axis="x", nbins=4)
        base = [r["rows"][-1][metric] for r in results if "drops" not in r and r["stage"] == task]
        if base:
            mean = sum(base) / len(base)
            axes.axvspan(0.95 * mean, mean, color="0.9")
            axes.axvline(mean, color="0.4", linewidth=1)
        for r in chains:
            y = names.index(r["variant"])
            own = [row[metric] for row in r["rows"] if row["stage"] == task]
            axes.plot(own, [y] * len(own), "o", mfc="none", mec="0.5", markersize=7)
            axes.plot(r["rows"][-1][metric], y, "D", color=colour, markersize=5)
        axes.set(xlabel=metric, yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x", color="0.92")
        axes.margins(y=0.08)
    if names:
        all_axes[0].invert_yaxis()
    figure.suptitle("open: after its own stage; filled: after the last; line and band: single-task and 5 % below it")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_pretraining(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what stage 0 misses of its teacher, map by map, and its other losses, over the views seen."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = [row["views"] for row in rows]
    names = {"map8": "stride 8", "map16": "stride 16", "map32": "stride 32", "map8_semantic": "deep maps from stride 8"}
    for (name, label), (_, marker, line, colour) in zip(names.items(), CURVES):
        y = [row["losses"][name] for row in rows]
        left.plot(x, y, marker=marker, linestyle=line, color=colour, label=label, markersize=3)
    for name, (_, marker, line, colour) in zip(("pooled", "logits"), CURVES):
        y = [row["losses"][name] for row in rows]
        right.plot(x, y, marker=marker, linestyle=line, color=colour, label=name, markersize=3)
    left.set(xlabel="views", ylabel="share of the teacher's variance missed")
    right.set(xlabel="views", ylabel="weighted loss")
    for axes in (left, right):
        axes.grid(axis="y", color="0.9")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
