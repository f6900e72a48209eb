"""The drawing of the network in report.md: what flows where, and how many parameters each part has."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"plain": "#F0F0F0", "backbone": "#CFE3F3", "neck": "#D6EFE4", "head": "#FBE0CC", "output": "#FFFFFF"}
"""Pale enough for black text, and distinguished by position as well."""


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, kind: str = "plain") -> None:
    """A rectangle with text in its middle; `x` and `y` are its lower left corner."""
    axes.add_patch(plt.Rectangle((x, y), width, height, facecolor=COLOURS[kind], edgecolor="0.3", linewidth=1))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, linespacing=1.4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow with a word above its middle."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", fontsize=7, color="0.25")


def draw_architecture(parameters: dict[str, int], path: Path) -> None:
    """Draw it; `parameters` counts those of "backbone", "neck" and "head"."""
    million = {part: f"{count / 1e6:.2f} M" for part, count in parameters.items()}
    figure, axes = plt.subplots(figsize=(10.4, 4.2), layout="constrained")
    box(axes, 0.0, 2.1, 1.0, 0.9, "image\n3 x S x S")
    box(axes, 1.6, 0.9, 1.7, 3.3, f"Fast-SCNN\n{million['backbone']}\n\nstrides\n8, 16, 32", "backbone")
    box(axes, 4.0, 0.9, 1.3, 3.3, f"one FPN\nlayer\n{million['neck']}\n\n3 maps,\nwidth 128", "neck")
    box(axes, 6.3, 3.4, 2.9, 0.8, "class token | 60 object queries\n| one query a segmentation class", "head")
    box(
        axes,
        6.3,
        2.0,
        2.9,
        1.0,
        f"3 decoder layers: self-attention,\nsampled cross-attention, MLP\nhead: {million['head']}",
        "head",
    )
    box(
        axes,
        6.3,
        0.9,
        2.9,
        0.7,
        "ONE projection of every token: box 4 ·\nconf 1 · C_det · C_cls · present · mask 128",
        "head",
    )
    for y, text in (
        (3.5, "class token: C_cls logits;\nclass presence for masks"),
        (2.2, "object queries: 60 boxes\nwith conf and C_det"),
        (0.9, "class queries · pixels:\nmasks, C_seg x S/8 x S/8"),
    ):
        box(axes, 10.2, y, 2.1, 0.7, text, "output")
        arrow(axes, (9.2, 1.25), (10.2, y + 0.35))
    arrow(axes, (1.0, 2.55), (1.6, 2.55))
    arrow(axes, (3.3, 2.55), (4.0, 2.55))
    arrow(axes, (5.3, 3.8), (6.3, 3.8), "top-k\nlocations")
    arrow(axes, (5.3, 2.5), (6.3, 2.5), "samples")
    arrow(axes, (7.75, 3.4), (7.75, 3.0))
    arrow(axes, (7.75, 2.0), (7.75, 1.6))
    axes.plot([4.65, 4.65, 11.25], [0.9, 0.35, 0.35], color="0.3", linewidth=1)
    arrow(axes, (11.25, 0.35), (11.25, 0.9))
    axes.text(7.75, 0.43, "pixel features at stride 8", ha="center", fontsize=7, color="0.25")
    axes.set(xlim=(-0.1, 12.5), ylim=(0.15, 4.4))
    axes.axis("off")
    figure.savefig(path, dpi=130)
    plt.close(figure)
