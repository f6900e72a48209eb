"""Records of a run: on disk always, on Weights & Biases only when asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from engine.config import TrackConfig
from engine.errors import UserError
from engine.plots import plot_forgetting
from engine.run import drops
from engine.tracking import Tracker

ROWS = [
    {"stage": "seg", "epoch": 1, "seconds": 1.0, "mIoU": 0.4, "mAP": 0.0, "AP50": 0.0, "Top-1": 0.1},
    {"stage": "det", "epoch": 1, "seconds": 2.0, "mIoU": 0.39, "mAP": 0.2, "AP50": 0.3, "Top-1": 0.1},
    {"stage": "cls", "epoch": 1, "seconds": 3.0},
    {"stage": "cls", "epoch": 2, "seconds": 6.0, "mIoU": 0.42, "mAP": 0.18, "AP50": 0.3, "Top-1": 0.9},
]


def test_every_row_is_one_line_and_a_resumed_run_holds_none_twice(tmp_path: Path) -> None:
    first = Tracker(tmp_path, TrackConfig(), {}, [])
    for row in ROWS[:2]:
        first.log(dict(row))
    resumed = Tracker(tmp_path, TrackConfig(), {}, [dict(ROWS[0])])
    for row in ROWS[1:]:
        resumed.log(dict(row))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()] == ROWS


def test_wandb_is_not_even_imported_when_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # any import of it would fail
    tracker = Tracker(tmp_path, TrackConfig(), {}, [])
    tracker.log(dict(ROWS[0]))
    tracker.close()


def test_wandb_offline_needs_no_account_and_keeps_a_run_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = Tracker(tmp_path, TrackConfig(wandb="offline"), {"seed": 0}, [])
    for row in ROWS:
        tracker.log(dict(row))
    tracker.close()
    runs = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    assert runs[0].stat().st_size > 0


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
        Tracker(tmp_path / "run", TrackConfig(), {}, []).log(dict(ROWS[0]))


def test_drops_by_hand() -> None:
    table = drops([r for r in ROWS if "mIoU" in r])
    assert table["seg"]["drop_points"] == pytest.approx(-2.0)
    assert table["det"]["drop_points"] == pytest.approx(2.0)
    assert table["det"]["drop_relative"] == pytest.approx(0.1)
    assert table["seg"]["passed"]
    assert not table["det"]["passed"]  # 2 points, but 10 % of its base: both readings must hold
    assert table["cls"]["drop_points"] == 0


def test_forgetting_curves_are_drawn(tmp_path: Path) -> None:
    plot_forgetting(ROWS, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20_000)) > 50
