"""Conventional heads on our backbone and neck, and where detections are lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.catalog import load_set
from data.types import Record, TaskSet
from engine.evaluation.average_precision import Detections, DetectionTally
from engine.storage.errors import UserError
from engine.train import main as train
from models.criterion import LossConfig
from models.locations import peak_scores
from models.onehead import ModelConfig
from models.postprocess import detections
from scripts.baselines import HEADS, Conventional, main
from scripts.diagnose_detection import main as diagnose_main
from scripts.diagnose_detection import pooled, readings
from scripts.publish_weights import main as publish
from tests.engine.conftest import TINY, drawn  # noqa: F401
from tests.models.builders import CLASSES, images, random_targets
from tests.models.builders import TINY as SHAPE
from tests.models.builders import tiny as tiny_model

METRIC = {"seg": "mIoU", "det": "mAP", "cls": "Top-1"}


def model_of(task: str) -> Conventional:
    torch.manual_seed(0)
    model = HEADS[task](ModelConfig(**SHAPE), CLASSES, 64, LossConfig())
    model.change_head()
    return model


@pytest.mark.parametrize("task", list(HEADS))
def test_gradients_reach_backbone_neck_and_head(task: str) -> None:
    model = model_of(task).train()
    losses = model.losses(images(2), random_targets([task] * 2))
    torch.stack(list(losses.values())).sum().backward()
    for name, part in model.named_children():
        reached = [p.grad is not None and bool(p.grad.any()) for p in part.parameters()]
        assert sum(reached) > (0.3 if name == "neck" else 0.8) * len(reached), name  # seg reads one map of three


@torch.no_grad()
def test_fcos_detections_read_like_object_queries() -> None:
    model = model_of("det").eval()
    outputs = model(images(2))
    raw, anchors, counts, batch = model.read(images(2))
    split = {k: list(v.split(counts, dim=1)) for k, v in raw.items()}
    found = model.head.postprocess_detections(split, [list(a.split(counts)) for a in anchors], batch.image_sizes)
    for one, best in zip(found, detections(outputs)):
        n = len(one["scores"])
        order = one["scores"].argsort(descending=True)
        torch.testing.assert_close(best["scores"][:n], one["scores"][order], atol=1e-4, rtol=1e-3)
        assert torch.equal(best["labels"][:n].sort().values, one["labels"].sort().values)
        assert (best["scores"][n:] < 1e-3).all()


@pytest.mark.parametrize("task", list(HEADS))
def test_a_baseline_trains_and_is_scored(task: str, drawn: Path, tmp_path: Path) -> None:  # noqa: F811
    where = ["--data.root", str(drawn), "--runs", str(tmp_path), "--name", "base"]
    assert main([*TINY, *where, "--stage", task]) == 0
    rows = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").open()]
    assert 0 <= rows[-1][METRIC[task]] <= 1
    assert rows[-1]["loss"] < rows[0]["loss"]
    others = set(METRIC.values()) - {METRIC[task]}
    assert not others & set(rows[-1])
    summary = json.loads((tmp_path / "base" / "summary.json").read_text())
    assert summary["tasks"][task]["final"] == rows[-1][METRIC[task]]


def test_a_baseline_that_is_done_is_left_alone(drawn: Path, tmp_path: Path) -> None:  # noqa: F811
    where = ["--data.root", str(drawn), "--runs", str(tmp_path), "--name", "base", "--stage", "cls"]
    assert main([*TINY, *where]) == 0
    before = (tmp_path / "base" / "cls.pt").read_bytes()
    with pytest.raises(UserError, match="already holds finished stages"):
        main([*TINY, *where])
    assert main([*TINY, *where, "--resume"]) == 0
    assert (tmp_path / "base" / "cls.pt").read_bytes() == before


# --- scripts/diagnose_detection.py ---


@torch.no_grad()
def test_readings_follow_the_network_from_the_maps_to_the_last_layer() -> None:
    model = tiny_model().eval()
    outputs = model(images(1))
    found = readings(outputs)
    assert list(found) == ["places + NMS", "selected", "layer 1", "layer 2", "layer 3"]
    assert found["places + NMS"] is outputs["dense"]
    assert found["layer 3"] is outputs
    dense = outputs["dense"]["pred_logits"]
    best = peak_scores(dense, outputs["maps"]).topk(model.config.queries).indices[0]
    assert torch.equal(found["selected"]["pred_logits"], dense[:, best])


def test_the_pooled_score_weighs_objects_and_not_classes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 70, 90], [5, 5, 60, 60]])
    labels = torch.tensor([0, 0, 0, 1])
    record = Record(Path("a.jpg"), boxes, labels, torch.zeros(4, dtype=torch.bool), torch.full((4,), 400.0))
    task_set = TaskSet("det", "val", "", ("common", "rare"), (record,))
    found = Detections(boxes[:3], torch.tensor([0.9, 0.8, 0.7]), labels[:3])
    mean_of_classes = DetectionTally((record,), (found,), task_set.classes).scores()["AP50"]
    assert mean_of_classes == pytest.approx(0.5)
    assert pooled(task_set, [found]) == pytest.approx(76 / 101)  # recall points 0 .. 0.75


def test_the_last_reading_scores_as_evaluation_does(drawn: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    where = ["--data.root", str(drawn), "--runs", str(tmp_path), "--name", "d", "--order", "[det]"]
    assert train([*TINY, *where, "--stage", "det", "--optim.epochs.det", "6"]) == 0
    row = [json.loads(line) for line in (tmp_path / "d" / "metrics.jsonl").open()][-1]
    capsys.readouterr()
    where = ["--data_root", str(drawn), "--json", str(tmp_path / "d.json")]
    assert diagnose_main([str(tmp_path / "d" / "det.pt"), *where]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    last = next(line for line in lines if line[:2] == ["layer", "3"])
    assert float(last[2]) == pytest.approx(row["mAP"], abs=1e-3)
    record = json.loads((tmp_path / "d.json").read_text())
    assert record["readings"]["layer 3"]["mAP"] == pytest.approx(row["mAP"], abs=1e-3)
    held = load_set(str(drawn), "det", "val").records
    assert sum(size["objects"] for size in record["sizes"].values()) == sum(int((~r.crowd).sum()) for r in held)
    assert all(0 <= size["best IoU"] <= 1 for size in record["sizes"].values())
    for reading in record["readings"].values():
        assert reading["nameless"] >= reading["pooled"] - 1e-6  # classes can only be in the way


def test_folds_are_read_as_one_each_on_what_it_held_back(drawn: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    paths = []
    for fold in ("0", "5"):
        where = ["--data.root", str(drawn), "--runs", str(tmp_path), "--name", fold, "--order", "[det]"]
        held = ["--stage", "det", "--optim.epochs.det", "1", "--data.holdout", "true", "--data.fold", fold]
        assert train([*TINY, *where, *held]) == 0
        paths.append(str(tmp_path / fold / "det.pt"))
    where = ["--data_root", str(drawn), "--json", str(tmp_path / "folds.json")]
    assert diagnose_main([*paths, *where, "--images", "held"]) == 0
    record = json.loads((tmp_path / "folds.json").read_text())
    parts = [load_set(str(drawn), "det", "train", part="choose", fold=fold).records for fold in (0, 5)]
    assert not {r.image for r in parts[0]} & {r.image for r in parts[1]}
    count = sum(int((~r.crowd).sum()) for part in parts for r in part)
    assert sum(size["objects"] for size in record["sizes"].values()) == count
    capsys.readouterr()
    with pytest.raises(UserError, match="add --images held"):
        diagnose_main([*paths, *where])
    with pytest.raises(UserError, match="held back the same images"):
        diagnose_main([paths[0], *paths, *where, "--images", "held"])
    publish([paths[0], str(tmp_path / "published.pt")])  # says nothing of the data it was trained on
    assert diagnose_main([str(tmp_path / "published.pt"), *where]) == 0
