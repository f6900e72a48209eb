from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from engine.storage.errors import UserError
from scripts import make_figures
from scripts.make_figures import FIGURES, digest, drawn_from, main, make


def test_a_figure_knows_the_record_it_was_drawn_from(tmp_path: Path) -> None:
    counts = {"parameters_backbone": 1_234_567, "parameters_neck": 100_000, "parameters_head": 900_000}
    record = tmp_path / "results" / "benchmark.json"
    record.parent.mkdir()
    record.write_text(json.dumps(counts))
    picture = tmp_path / "architecture.png"
    make("architecture", tmp_path, picture)
    assert drawn_from(picture) == digest(record)
    with Image.open(picture) as image:
        assert image.width > 2 * image.height > 600
    assert picture.stat().st_size < 100_000


def test_a_figure_of_a_grid_is_of_all_its_cells(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    one = digest(tmp_path)
    (tmp_path / "table.md").write_text("not a cell")
    assert digest(tmp_path) == one
    (tmp_path / "b.json").write_text("2")
    both = digest(tmp_path)
    (tmp_path / "a.json").write_text("3")
    assert len({one, both, digest(tmp_path)}) == 3


def test_forgetting_is_of_every_seed_of_the_recipe_beside_the_mean_of_networks_that_learn_one_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 0):
        ends = {"mIoU": 0.2 + seed / 10, "mAP": 0.1, "AP50": 0.3, "Top-1": 0.8}
        for variant, stage in (
            ("onehead", "all"),
            ("finetune", "all"),
            *(("single-task", s) for s in ("seg", "det", "cls")),
        ):
            curve = [{"stage": stage, "epoch": 1, "seed": f"{variant} {seed}"}]
            record = {"variant": variant, "stage": stage, "rows": [ends], "curve": curve}
            (tmp_path / f"{variant}-{stage}-s{seed}.json").write_text(json.dumps(record))
    drawn = []
    monkeypatch.setattr(make_figures, "plot_panels", lambda *given: drawn.append(given))
    make_figures.forgetting(tmp_path, tmp_path / "x.png")
    ((rows, references, _, others),) = drawn
    assert [run[0]["seed"] for run in (rows, *others)] == ["onehead 0", "onehead 1"]
    assert references["mIoU"] == ("single-task", pytest.approx(0.25))
    assert references.keys() == {"mIoU", "mAP", "AP50", "Top-1"}


def test_a_picture_without_digest_is_of_no_record(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    assert drawn_from(tmp_path / "a.png") == ""


def test_the_figures_of_this_repository_show_its_records() -> None:
    assert main(["--check"]) == 0


def test_another_record_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for record, _ in FIGURES.values():
        (tmp_path / record).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / record).write_text("{}")
    monkeypatch.setattr(make_figures, "ROOT", tmp_path)
    with pytest.raises(UserError, match="is of other records"):
        main(["--check"])
