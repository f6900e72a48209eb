"""Records of a run: on disk always, on Weights & Biases only when asked for."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from engine.settings.config import TrackConfig
from engine.storage.errors import UserError
from engine.tracking.tracker import Tracker
from engine.train import main, print_table
from engine.training.summary import drops

ROWS = [
    {"stage": "seg", "epoch": 1, "seconds": 1.0, "mIoU": 0.4, "mAP": 0.0, "AP50": 0.0, "Top-1": 0.1},
    {"stage": "det", "epoch": 1, "seconds": 2.0, "mIoU": 0.39, "mAP": 0.2, "AP50": 0.3, "Top-1": 0.1},
    {"stage": "cls", "epoch": 1, "seconds": 3.0},
    {"stage": "cls", "epoch": 2, "seconds": 6.0, "mIoU": 0.42, "mAP": 0.18, "AP50": 0.3, "Top-1": 0.9},
]


def test_every_row_is_one_line_and_a_resumed_run_holds_none_twice(tmp_path: Path) -> None:
    first = Tracker(tmp_path, TrackConfig(), {}, [])
    for row in ROWS[:2]:
        first.log(dict(row), 15)
    resumed = Tracker(tmp_path, TrackConfig(), {}, first.rows[:1])
    for row in ROWS[1:]:
        resumed.log(dict(row), 15)
    expected = [{**row, "global_step": 15 * (i + 1)} for i, row in enumerate(ROWS)]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()] == expected


def test_wandb_is_not_even_imported_when_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # any import of it would fail
    tracker = Tracker(tmp_path, TrackConfig(), {}, [])
    tracker.log(dict(ROWS[0]))
    tracker.close()


BLOCK, HEAD = 32768, 7
"""An offline run is a LevelDB log: blocks of records, each with checksum (4 bytes), length (2), type (1)."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_back(folder: Path) -> list[Any]:
    """Records of the only offline run in a folder, once wandb's own process has written the last of them."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(200):
        records = parsed(path.read_bytes())
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def parsed(data: bytes) -> list[Any]:
    """The records in an offline run's file."""
    at, parts, records = HEAD, b"", []
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[at + HEAD : at + HEAD + length]
        if kind in (FULL, LAST):
            records.append(wandb_internal_pb2.Record.FromString(parts))
        at += HEAD + length
    return records


def history(records: list[Any]) -> list[dict[str, Any]]:
    """What was logged, step by step."""
    rows = [r.history.item for r in records if r.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items} for items in rows]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("offline")
def test_an_offline_run_holds_forgetting_curves_losses_and_remedies(tmp_path: Path) -> None:
    rows = [{**row, "loss": 2.0, "grad_norm": 0.5, "losses": {"seg_ce": 1.5, "ewc": 0.5}} for row in ROWS]
    config = TrackConfig(wandb="offline", group="remedies")
    tracker = Tracker(tmp_path, config, {"seed": 7, "order": ["seg", "det", "cls"]}, [])
    for row in rows:
        tracker.log(row, 15)
    tracker.close(drops([r for r in ROWS if "mIoU" in r]))
    records = read_back(tmp_path)
    logged = history(records)
    curve = [(r["global_step"], r["stage"], r["curves/mIoU"]) for r in logged if "curves/mIoU" in r]
    assert curve == [(15, 0, 0.4), (30, 1, 0.39), (60, 2, 0.42)]
    assert {r["loss/seg_ce"] for r in logged if "loss/seg_ce" in r} == {1.5}
    assert {r["remedy/ewc"] for r in logged if "remedy/ewc" in r} == {0.5}
    assert {r["train/grad_norm"] for r in logged if "train/grad_norm" in r} == {0.5}
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group) == ((tmp_path / "wandb_id.txt").read_text().strip(), "remedies")
    metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert {m.step_metric for m in metrics if m.glob_name == "*"} == {"global_step"}
    assert any(key.startswith("drops") for r in logged for key in r)


@pytest.mark.usefixtures("offline")
def test_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    config = TrackConfig(wandb="offline")
    for _ in range(2):
        tracker = Tracker(tmp_path, config, {}, [])
        tracker.close()
    names = [p.name for p in tmp_path.glob("wandb/offline-run-*")]
    assert len(names) == 2
    assert all((tmp_path / "wandb_id.txt").read_text().strip() in name for name in names)


@pytest.mark.usefixtures("offline")
def test_a_whole_chain_logs_classes_and_predictions(tiny: list[str], tmp_path: Path) -> None:
    assert main([*tiny, "--track.wandb", "offline", "--stage", "seg"]) == 0
    logged = history(read_back(tmp_path / "runs" / "tiny"))
    keys = {key.split("/")[0] + "/" + key.split("/")[1] if "/" in key else key for row in logged for key in row}
    assert {"per_class/seg", "per_class/det", "per_class/cls"} <= keys
    assert any(key.startswith("predictions") for key in keys)


@pytest.mark.usefixtures("offline")
def test_one_task_alone_is_logged_without_sets_of_the_others(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = Path(tiny[tiny.index("--data.root") + 1])
    shutil.copytree(drawn / "mini_coco_det", tmp_path / "boxes" / "mini_coco_det")
    alone = ["--data.root", str(tmp_path / "boxes"), "--order", "[det]", "--stage", "det"]
    assert main([*tiny, *alone, "--track.wandb", "offline"]) == 0
    assert "Weights & Biases is lost" not in capsys.readouterr().out


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
    nothing = [{**ROWS[1], "mAP": 0.0}, {**ROWS[3], "mAP": 0.0}]
    assert not drops(nothing)["det"]["passed"]


def test_a_joint_stage_of_one_set_has_the_drop_of_its_task_alone() -> None:
    assert drops([{"stage": "joint", "Top-1": 0.5}]).keys() == {"cls"}


def test_what_was_kept_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = drops([{**ROWS[0], "mIoU": 0.0}, *ROWS[1:2], {**ROWS[3], "Top-1": 0.5}])
    print_table({"tasks": table, "minutes": 1.0}, ROWS, tmp_path)
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert lines["seg"][3:] == ["+42.00", "+0.0%", "nothing", "was", "learnt"]
    assert lines["det"][3:] == ["-2.00", "-10.0%", "NO"]
    assert lines["cls"][3:] == ["+0.00", "+0.0%", "yes"]
