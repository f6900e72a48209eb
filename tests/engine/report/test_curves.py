"""Forgetting curves of a run, and of several seeds in one picture."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from engine.report.curves import plot_panels, stage_borders
from engine.report.page import chart
from tests.engine.tracking.test_tracker import ROWS


def drawn(references: dict[str, tuple[str, float]], others: list[list[dict]] | None = None) -> str:
    def draw(file: BytesIO) -> None:
        plot_panels(ROWS, references, file, others or [])

    return chart(draw, "test")


def test_stages_begin_after_the_epochs_of_those_before() -> None:
    assert stage_borders(ROWS) == ({"seg": 0, "det": 1, "cls": 2}, 4)
    assert stage_borders([]) == ({}, 0)


def test_a_run_is_drawn_into_a_file_with_or_without_references(tmp_path: Path) -> None:
    plot_panels(ROWS, {}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 3 * picture.height > 1000
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20_000)) > 50


def test_each_name_is_in_a_panels_legend_once_and_other_seeds_have_none() -> None:
    both = drawn({"mAP": ("single-task", 0.2), "AP50": ("single-task", 0.3)})
    assert both.count(">single-task</text>") == both.count(">5% below</text>") == 1
    assert both.count(">mAP</text>") == 2  # title and legend
    assert ">single-task</text>" not in drawn({})
    other = [{**row, "mIoU": 0.3} if "mIoU" in row else row for row in ROWS]
    with_seeds = drawn({}, [other, other])
    assert with_seeds.count("</text>") == pytest.approx(drawn({}).count("</text>"), abs=2)  # ticks may move
    assert with_seeds.count("stroke-opacity: 0.6") == 2 * 4  # a thin line a metric
