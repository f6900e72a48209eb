"""The page of a comparison: a matrix of remedies by metrics from its results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.report.comparison import settings_rows, write_comparison
from tests.engine.report.outline import Outline

ODD = "<i>odd & 'new'"
WHERE = {"machine": "CPU", "device": "cpu", "dtype": "torch.float32", "commit": "abc", "minutes": 2.0}


def row(stage: str, miou: float) -> dict[str, Any]:
    return {"stage": stage, "mIoU": miou, "mAP": 0.1, "AP50": 0.3, "Top-1": 0.5}


def chain(variant: str, seed: int, after: float, **settings: Any) -> dict[str, Any]:
    same = {"before": 0.5, "after": 0.5, "points": 0.0, "relative": 0.0, "points_interval": None}
    drop = {**same, "after": after, "points": 100 * (0.5 - after), "relative": (0.5 - after) / 0.5}
    own = {"mIoU": {**same, "points": 6.0, "relative": 0.12}}
    return {
        "variant": variant,
        "stage": "all",
        "seed": seed,
        "settings": settings,
        "rows": [row("seg", 0.5), row("det", after)],
        "drops": {"mIoU": drop, "mAP": same, "Top-1": same},
        "own_drops": own,
        "peak_memory_mib": 10.0,
        **WHERE,
    }


def single(task: str) -> dict[str, Any]:
    rows = [row(task, 0.5)]
    return {
        "variant": "single-task",
        "stage": task,
        "seed": 0,
        "settings": {},
        "rows": rows,
        "peak_memory_mib": 9.0,
        **WHERE,
    }


def test_the_matrix_has_means_ranges_and_verdicts_of_every_seed(tmp_path: Path) -> None:
    chains = [chain("ewc", 0, 0.48), chain("ewc", 1, 0.46), chain(ODD, 0, 0.5)]
    write_comparison([*map(single, ("seg", "det", "cls")), *chains], tmp_path / "report.html", ODD, "python -m x")
    page = (tmp_path / "report.html").read_text(encoding="ascii")
    outline = Outline(page)
    assert "i" not in outline.counts
    assert "://" not in page
    assert all(address.startswith("#") for address in outline.addresses)
    matrix = {cells[0]: cells for cells in outline.tables["final"]}
    assert list(matrix) == ["variant", "single-task", "ewc", ODD]
    assert matrix["ewc"][1:5] == ["2", "0.470 (0.460-0.480)", "-3.0", "-6.0 %"]
    assert matrix["ewc"][matrix["variant"].index("passed")] == "1 of 2 / 0 of 2"
    seeds = {tuple(cells[:2]): cells[2:] for cells in outline.tables["seeds"][1:]}
    assert seeds["ewc", "0"] == ["0.480", "0.100", "0.500", "0.300", "✓ within 5 %", "✗ above 5 %", "2.0"]
    assert seeds["ewc", "1"][4] == "✗ above 5 %"
    assert seeds["single-task det", "0"][:4] == ["", "0.100", "", "0.300"]
    assert len(outline.tables["matrix"]) == 1 + 2 * 2
    assert page.count('class="sortable"') == 3


def test_settings_are_those_that_differ_from_what_most_variants_have() -> None:
    chains = {
        "a": [chain("a", 0, 0.5, x=1, y=0)],
        "b": [chain("b", 0, 0.5, x=1, y=2)],
        "c": [chain("c", 0, 0.5, x=1, y=0, z=True)],
    }
    assert settings_rows(chains) == [("unless said otherwise", "x 1, y 0"), ("a", ""), ("b", "y 2"), ("c", "z true")]
    assert settings_rows({}) == [("unless said otherwise", "")]
