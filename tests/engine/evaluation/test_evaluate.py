from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.catalog import load_set
from data.types import TASKS, Record, Task, TaskSet
from engine.evaluation.evaluate import Evaluator
from engine.evaluation.metrics import SCORE_NAMES, Scores
from engine.storage.errors import UserError
from models.onehead import ModelConfig, OneHead
from tests.engine.oracle import CLASSES, Answer, Oracle, draw, write_sets


def evaluate(model: Any, sets: dict[Task, TaskSet], batch_size: int = 8, dtype: torch.dtype | None = None) -> Scores:
    return Evaluator(sets, model.input_size, batch_size).run(model, dtype=dtype).scores


def load_sets(root: Path) -> dict[Task, TaskSet]:
    return {task: load_set(root, task, "val", CLASSES[task]) for task in TASKS}


def test_an_oracle_scores_one_on_images_of_any_size_and_shape(tmp_path: Path) -> None:
    oracle = write_sets(tmp_path)
    scores = evaluate(oracle, load_sets(tmp_path), batch_size=2)
    assert set(scores) == {name for names in SCORE_NAMES.values() for name in names}
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))


def test_wrong_answers_cost_what_they_should(tmp_path: Path) -> None:
    oracle = write_sets(tmp_path)
    del oracle.answers[1].boxes[1], oracle.answers[1].labels[1]  # the dog of image 1 is missed
    oracle.answers[4].cells = torch.zeros(4, 4, dtype=torch.int64)  # the cat's half of 24 x 16 pixels is missed
    oracle.answers[8].label = 0
    scores = evaluate(oracle, load_sets(tmp_path))
    # cat: found. dog: one of two found, which is 51 of the 101 recall points.
    assert scores["mAP"] == pytest.approx((1 + 51 / 101) / 2)
    # background: 192 + 380 hits, 192 wrongly taken for it; cat: none of 192; dog: all.
    assert scores["mIoU"] == pytest.approx((572 / 764 + 0 + 1) / 3)
    assert scores["pixel_acc"] == pytest.approx((192 + 760) / (384 + 760))
    assert scores["Top-1"] == pytest.approx(2 / 3)


def test_only_the_given_tasks_are_scored_and_every_image_is_seen_once(tmp_path: Path) -> None:
    oracle = write_sets(tmp_path)
    scores = evaluate(oracle, {"cls": load_sets(tmp_path)["cls"]}, batch_size=2)
    assert set(scores) == set(SCORE_NAMES["cls"])
    assert sorted(oracle.seen) == [6, 7, 8]


def test_batch_size_changes_nothing(tmp_path: Path) -> None:
    oracle, sets = write_sets(tmp_path), load_sets(tmp_path)
    oracle.answers[2].boxes = [[0.7, 0.7, 0.5, 0.5]]
    assert evaluate(oracle, sets, batch_size=1) == pytest.approx(evaluate(oracle, sets, batch_size=8))


def test_per_image_results_can_be_resampled(tmp_path: Path) -> None:
    oracle, sets = write_sets(tmp_path), load_sets(tmp_path)
    oracle.answers[8].label = 0
    result = Evaluator(sets, size=32).run(oracle)
    worst = [i for i, record in enumerate(sets["cls"].records) if record.image.stem == "8"]
    assert result.per_image["cls"].scores(worst * 3)["Top-1"] == 0.0
    assert [len(result.per_image[task]) for task in TASKS] == [2, 3, 3]
    assert result.per_image["cls"].per_class()["church"] == {"accuracy": 0.0, "images": 1.0}


def test_categories_unknown_to_the_model_count_as_missed(tmp_path: Path) -> None:
    image = draw(tmp_path / "1.png", 1, (100, 100))
    boxes = torch.tensor([[0.0, 0.0, 50.0, 50.0], [50.0, 50.0, 100.0, 100.0]])
    record = Record(image, boxes, torch.tensor([0, 2]), torch.zeros(2, dtype=torch.bool), torch.full((2,), 2500.0))
    det = TaskSet("det", "test", "", CLASSES["det"], (record,), unknown=("zebra",))
    other = Record(draw(tmp_path / "2.png", 2, (10, 10)), label=2)
    cls = TaskSet("cls", "test", "", CLASSES["cls"], (Record(image, label=0), other), unknown=("zebra",))
    oracle = Oracle({1: Answer(boxes=[[0.25, 0.25, 0.5, 0.5]], labels=[0]), 2: Answer()})
    scores = evaluate(oracle, {"det": det, "cls": cls})
    assert (scores["mAP"], scores["mAP_known"]) == pytest.approx((0.5, 1.0))
    assert (scores["Top-1"], scores["Top-1_known"]) == pytest.approx((0.5, 1.0))


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, sets = write_sets(tmp_path), load_sets(tmp_path)
    evaluator = Evaluator(sets, size=32)
    first = evaluator.run(oracle).scores

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr("data.dataset.read_image", refuse)
    assert evaluator.run(oracle).scores == pytest.approx(first)


class Watched(Oracle):
    """An oracle with a batch norm frozen on its own, which notes how it was called."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        super().__init__(answers)
        self.free, self.frozen = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.modes: list[tuple[bool, bool, torch.dtype | None]] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.modes.append((self.free.training, torch.is_grad_enabled(), autocast))
        return super().forward(images)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_model_runs_in_eval_mode_and_gets_its_own_modes_back(tmp_path: Path, dtype: torch.dtype | None) -> None:
    model = Watched(write_sets(tmp_path).answers).train()
    model.frozen.eval()
    evaluate(model, load_sets(tmp_path), dtype=dtype)
    assert set(model.modes) == {(False, False, dtype)}
    assert (model.training, model.free.training, model.frozen.training) == (True, True, False)


def test_modes_come_back_after_an_error(tmp_path: Path) -> None:
    model = Watched({}).train()
    write_sets(tmp_path)
    with pytest.raises(KeyError):
        evaluate(model, load_sets(tmp_path))
    assert model.training
    assert model.free.training


def test_other_classes_than_the_models_are_refused(tmp_path: Path) -> None:
    oracle = write_sets(tmp_path)
    swapped = load_set(tmp_path, "det", "val", ("dog", "cat"))
    with pytest.raises(UserError, match="det classes are cat, dog, but the set was read with dog, cat"):
        evaluate(oracle, {"det": swapped})


def test_the_real_network_can_be_scored(tmp_path: Path) -> None:
    write_sets(tmp_path)
    torch.manual_seed(0)
    model = OneHead(ModelConfig(queries=10), CLASSES, input_size=64)
    scores = evaluate(model, load_sets(tmp_path), batch_size=3)
    assert all(0 <= value <= 1 for value in scores.values() if not math.isnan(value))
    assert scores["pixel_acc"] < 1
