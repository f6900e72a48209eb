"""Held-out losses distinguish checkpoints, and refuse those that have learnt from what another held back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.types import TASKS
from engine.storage.errors import UserError
from engine.train import main as train
from scripts.held_out_losses import METRICS, TERMS, drift, main
from tests.engine.conftest import TINY, drawn  # noqa: F401


def test_drift_is_the_mean_divergence_and_agreement_is_on_objects_alone() -> None:
    first = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [1.0, 0.0]]])[None]  # 2 classes, 2 x 2 pixels
    assert drift(first, first) == {"drift": 0.0, "agree": 1.0}
    moved = first.clone()
    moved[0, :, 1, 0] = torch.tensor([1.0, 0.0])  # one of the two pixels of an object becomes background
    log_p, log_q = (torch.tensor(logits).log_softmax(0) for logits in ([1.0, 0.0], [0.0, 1.0]))
    expected = float((log_q.exp() * (log_q - log_p)).sum()) / 4
    assert drift(moved, first) == {"drift": pytest.approx(expected, abs=1e-4), "agree": 0.5}


def test_the_record_has_every_term_of_every_checkpoint(drawn: Path, tmp_path: Path) -> None:  # noqa: F811
    held = [*TINY, "--data.root", str(drawn), "--runs", str(tmp_path), "--data.holdout", "true", "--name", "held"]
    softer = ["--continual.distill", "7", "--optim.shared_lr.det", "0.25"]
    assert train([*held, "--stage", "seg"]) == 0
    assert train([*held, "--stage", "det", "--resume", *softer]) == 0
    paths = [str(tmp_path / "held" / f"{stage}.pt") for stage in ("seg", "det")]
    assert main([*paths, "--data.root", str(drawn), "--json", str(tmp_path / "record.json")]) == 0
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [row["checkpoint"] for row in rows] == ["held/seg.pt", "held/det.pt"]
    assert all({*TERMS, *METRICS} <= row.keys() for row in rows)
    assert [row["settings"]["distill"] for row in rows] == [3.0, 7.0]
    assert [row["settings"]["shared_lr"] for row in rows] == [1.0, 0.25]
    assert rows[0]["drift"] == 0 < rows[1]["drift"]
    assert rows[1]["l1"] < rows[0]["l1"]  # which stage 2 taught


def test_a_run_of_one_task_is_measured_on_its_set_alone(drawn: Path, tmp_path: Path) -> None:  # noqa: F811
    (boxes,) = (folder for folder in drawn.iterdir() if "det" in folder.name)
    alone = ["--data.root", str(boxes), "--runs", str(tmp_path), "--name", "one", "--order", "[det]", "--stage", "det"]
    assert train([*TINY, *alone]) == 0
    assert main([str(tmp_path / "one" / "det.pt"), "--data.root", str(boxes), "--json", str(tmp_path / "r.json")]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {"mAP", "AP50", "l1", "giou", "conf"} <= row.keys()
    assert not {"drift", "mIoU", "Top-1", "seg_ce", "cls_ce"} & row.keys()


@pytest.mark.parametrize("other", [["--data.holdout", "false"], ["--data.holdout", "true", "--data.fold", "1"]])
def test_a_network_that_may_have_learnt_from_the_images_is_refused(
    drawn: Path,  # noqa: F811
    tmp_path: Path,
    other: list[str],
) -> None:
    run = [*TINY, "--data.root", str(drawn), "--runs", str(tmp_path), "--stage", TASKS[0]]
    assert train([*run, "--name", "held", "--data.holdout", "true"]) == 0
    assert train([*run, "--name", "other", *other]) == 0
    paths = [str(tmp_path / name / "seg.pt") for name in ("held", "other")]
    with pytest.raises(UserError, match=r"other/seg\.pt holds back other images than .*held/seg\.pt"):
        main([*paths, "--data.root", str(drawn)])
