"""Our average precision is that of the official tool, run its own way: from JSON files, with its own defaults."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.types import Record
from engine.evaluation.average_precision import Detections, DetectionTally

CLASSES = ("cat", "dog", "cup")
Pair = tuple[Record, Detections]
OFFICIAL = {"mAP": 0, "AP50": 1, "AP75": 2, "AP_S": 3, "AP_M": 4, "AP_L": 5, "AR100": 8}
"""Where a score stands in the official tool's list."""


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 300, (count, 2))
    return np.concatenate(
        [corner, corner + rng.choice([8.0, 40.0, 150.0], (count, 1)) * rng.uniform(0.5, 2, (count, 2))], 1
    )


def record(boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray) -> Record:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) * 0.7  # of a mask, as in COCO
    return Record(
        Path("x.jpg"), corners, torch.tensor(labels, dtype=torch.int64), torch.tensor(crowd, dtype=torch.bool), area
    )


def detections(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def random_pair(rng: np.random.Generator, objects: int, extra: int, ties: bool, crowds: float) -> Pair:
    """Objects, most of them found roughly, some twice or as another class, and detections of nothing."""
    boxes, labels = boxes_of(rng, objects), rng.integers(0, 3, objects)
    again = rng.integers(0, objects, objects + objects // 2) if objects else np.zeros(0, dtype=np.int64)
    moved = boxes[again] + rng.normal(0, 4, (len(again), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
    predicted = np.where(rng.random(len(again)) < 0.8, labels[again], rng.integers(0, 3, len(again)))
    found = np.concatenate([moved, boxes_of(rng, extra)])
    scores = rng.random(len(found))
    return (
        record(boxes, labels, rng.random(objects) < crowds),
        detections(
            found, np.round(scores, 1) if ties else scores, np.concatenate([predicted, rng.integers(0, 3, extra)])
        ),
    )


def official(pairs: list[Pair], folder: Path) -> np.ndarray:
    """The twelve numbers of pycocotools, from files that it reads itself."""
    truth, found = [], []
    for image, (known, detected) in enumerate(pairs):
        for box, label, crowd, area in zip(
            known.boxes.tolist(), known.labels.tolist(), known.crowd.tolist(), known.area.tolist()
        ):
            entry = {
                "id": len(truth) + 1,
                "image_id": image,
                "category_id": label + 10,
                "iscrowd": int(crowd),
                "area": area,
            }
            truth.append({**entry, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
        for box, score, label in zip(detected.boxes.tolist(), detected.scores.tolist(), detected.labels.tolist()):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found.append({"image_id": image, "category_id": label + 10, "bbox": bbox, "score": score})
    document = {
        "images": [{"id": i} for i in range(len(pairs))],
        "categories": [{"id": k + 10, "name": name} for k, name in enumerate(CLASSES)],
        "annotations": truth,
    }
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(folder / "truth.json"))
        evaluator = COCOeval(known, known.loadRes(str(folder / "found.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


def assert_official(pairs: list[Pair], folder: Path) -> None:
    ours = DetectionTally(tuple(r for r, _ in pairs), tuple(d for _, d in pairs), CLASSES).scores()
    theirs = official(pairs, folder)
    for name, index in OFFICIAL.items():
        expected = float("nan") if theirs[index] == -1 else theirs[index]
        assert ours[name] == pytest.approx(expected, abs=1e-12, nan_ok=True), name
    assert ours["mAP_known"] == pytest.approx(ours["mAP"], nan_ok=True)


@given(
    seed=st.integers(0, 2**31 - 1),
    images=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5),
    ties=st.booleans(),
    crowds=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_sets(
    seed: int, images: list[tuple[int, int]], ties: bool, crowds: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    pairs = [random_pair(rng, objects, extra, ties, crowds) for objects, extra in images]
    if any(len(detected.boxes) for _, detected in pairs):  # the tool cannot read an empty list of detections
        assert_official(pairs, tmp_path_factory.getbasetemp())


ONE = np.array([[10.0, 10.0, 60.0, 110.0]])
NONE = np.zeros((0, 4))


def many(count: int) -> Pair:
    """More than a hundred detections, the only right one with the lowest score but one."""
    boxes = np.concatenate([boxes_of(np.random.default_rng(0), count - 2), ONE, ONE + 500])
    return record(ONE, np.array([0]), np.array([False])), detections(boxes, np.linspace(1, 0.1, count), np.zeros(count))


ADVERSARIAL: dict[str, Callable[[], list[Pair]]] = {
    "the hundred and first counts no more": lambda: [many(100), many(101), many(102)],
    "one box found a hundred times": lambda: [
        (record(ONE, np.array([1]), np.array([False])), detections(ONE.repeat(100, 0), np.full(100, 0.5), np.ones(100)))
    ],
    "equal scores over several images": lambda: [
        (record(ONE + i, np.array([i % 3]), np.array([False])), detections(ONE, np.array([0.5]), np.array([0])))
        for i in range(6)
    ],
    "only crowds": lambda: [
        (record(ONE, np.array([0]), np.array([True])), detections(ONE, np.array([0.9]), np.array([0])))
    ],
    "no truth but detections": lambda: [
        (record(NONE, np.zeros(0), np.zeros(0)), detections(ONE, np.array([0.9]), np.array([2])))
    ],
    "boxes without area": lambda: [
        (
            record(np.array([[5.0, 5.0, 5.0, 5.0], *ONE.tolist()]), np.array([0, 0]), np.array([False, False])),
            detections(np.array([[5.0, 5.0, 5.0, 5.0], *ONE.tolist()]), np.array([0.9, 0.8]), np.array([0, 0])),
        )
    ],
    "areas on the borders between sizes": lambda: [
        (
            record(np.array([[0, 0, 32.0, 32.0 / 0.7], [0, 200, 96.0, 200 + 96.0 / 0.7]]), np.zeros(2), np.zeros(2)),
            detections(np.array([[0, 0, 32.0, 32.0 / 0.7], [0, 200, 96.0, 330.0]]), np.array([0.9, 0.8]), np.zeros(2)),
        )
    ],
    "an IoU exactly on a threshold": lambda: [
        (
            record(ONE, np.array([0]), np.array([False])),
            detections(ONE - [[0, 0, 0, 50]], np.array([0.9]), np.array([0])),
        )
    ],
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_sets(case: str, tmp_path: Path) -> None:
    assert_official(ADVERSARIAL[case](), tmp_path)


def test_values_of_adversarial_sets_by_hand() -> None:
    def score(case: str) -> float:
        pairs = ADVERSARIAL[case]()
        return DetectionTally(tuple(r for r, _ in pairs), tuple(d for _, d in pairs), CLASSES).scores()["mAP"]

    # The first of a hundred equal detections is the hit: precision 1 at every recall.
    assert score("one box found a hundred times") == pytest.approx(1.0)
    assert math.isnan(score("only crowds"))
    assert math.isnan(score("no truth but detections"))
    # IoU 0.5 passes the first of ten thresholds.
    assert score("an IoU exactly on a threshold") == pytest.approx(0.1)
