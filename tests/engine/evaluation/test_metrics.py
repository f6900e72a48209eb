from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import metric
from torchmetrics.functional.classification import multiclass_jaccard_index

from data.types import Record
from engine.evaluation.average_precision import Detections, DetectionTally
from engine.evaluation.metrics import (
    SCORE_NAMES,
    ClassificationTally,
    SegmentationTally,
    confusion_matrix,
    predicted_mask,
)

BOX = [10.0, 10.0, 60.0, 110.0]  # 50 x 100: medium by COCO's sizes (32^2 .. 96^2 square pixels)
FAR = [300.0, 300.0, 400.0, 400.0]


def truth(*boxes: list[float], labels: list[int] | None = None, crowd: list[bool] | None = None) -> Record:
    corners = torch.tensor(boxes).reshape(-1, 4)
    return Record(
        Path("image.jpg"),
        boxes=corners,
        labels=torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        crowd=torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
        area=(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
    )


def found(*boxes: list[float], scores: list[float] | None = None, labels: list[int] | None = None) -> Detections:
    return Detections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores or [0.9] * len(boxes)),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
    )


def tally(
    pairs: list[tuple[Record, Detections]], classes: tuple[str, ...] = ("cat",), unknown: tuple[str, ...] = ()
) -> DetectionTally:
    return DetectionTally(tuple(r for r, _ in pairs), tuple(d for _, d in pairs), classes, unknown)


# --- detection


def test_exact_boxes_score_one_in_every_metric_that_exists() -> None:
    small, large = [0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 300.0, 300.0]
    scores = tally([(truth(BOX, small), found(BOX, small)), (truth(large), found(large))]).scores()
    assert set(scores) == set(SCORE_NAMES["det"])
    assert scores == pytest.approx(dict.fromkeys(SCORE_NAMES["det"], 1.0))


def test_average_precision_of_two_images_by_hand() -> None:
    # Image 0: one box, found with score 0.9. Image 1: one box, found with 0.5, and a false detection at 0.95.
    # Ranked: FP .95, TP .9, TP .5 -> precision 0, 1/2, 2/3 at recall 0, 1/2, 1. Made monotone from the right
    # it is 2/3 at each of the 101 recall points, at every IoU threshold.
    scores = tally([(truth(BOX), found(BOX)), (truth(BOX), found(FAR, BOX, scores=[0.95, 0.5]))]).scores()
    assert scores["mAP"] == pytest.approx(2 / 3)
    assert scores["AP50"] == pytest.approx(2 / 3)
    assert scores["AR100"] == pytest.approx(1.0)


def test_half_of_the_boxes_found_gives_51_of_101_recall_points() -> None:
    # Precision is 1 up to recall 1/2, that is at the recall points 0, .01, ..., .50, and 0 beyond.
    scores = tally([(truth(BOX), found(BOX)), (truth(BOX), found())]).scores()
    assert scores["mAP"] == pytest.approx(51 / 101)
    assert scores["AR100"] == pytest.approx(0.5)


def test_iou_of_just_over_060_passes_three_of_ten_thresholds() -> None:
    # 50 x 100 against 50 x 60.5 inside it: IoU 0.605 passes .50, .55 and .60.
    scores = tally([(truth(BOX), found([10.0, 10.0, 60.0, 70.5]))]).scores()
    assert scores["AP50"] == pytest.approx(1.0)
    assert scores["mAP"] == pytest.approx(0.3)
    assert scores["AP75"] == 0.0


def test_sizes_follow_the_area_in_the_file() -> None:
    scores = tally([(truth(BOX, FAR), found(BOX))]).scores()
    assert math.isnan(scores["AP_S"])
    assert scores["AP_M"] == pytest.approx(1.0)
    assert scores["AP_L"] == 0.0


def test_a_duplicate_ranked_before_a_hit_lowers_ap() -> None:
    other = [200.0, 200.0, 250.0, 300.0]
    once = tally([(truth(BOX, other), found(BOX, other, scores=[0.9, 0.5]))]).scores()
    twice = tally([(truth(BOX, other), found(BOX, BOX, other, scores=[0.9, 0.8, 0.5]))]).scores()
    assert once["mAP"] == pytest.approx(1.0)
    # TP, FP, TP: precision 1 up to recall 1/2 (51 points), 2/3 beyond (50 points).
    assert twice["mAP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_detections_in_an_image_without_annotation_are_false_positives() -> None:
    empty = truth()
    scores = tally([(truth(BOX), found(BOX, scores=[0.5])), (empty, found(BOX, scores=[0.9]))]).scores()
    assert scores["mAP"] == pytest.approx(0.5)


def test_crowds_are_neither_to_be_found_nor_false_positives() -> None:
    crowd = truth(BOX, FAR, crowd=[False, True])
    assert tally([(crowd, found(BOX))]).scores()["mAP"] == pytest.approx(1.0)
    inside = [310.0, 310.0, 330.0, 330.0]
    hit = tally([(crowd, found(inside, inside, BOX, scores=[0.9, 0.8, 0.5]))])
    assert hit.scores()["mAP"] == pytest.approx(1.0)
    assert hit.per_class()["cat"]["boxes"] == 1


def test_no_detections_at_all_score_zero() -> None:
    scores = tally([(truth(BOX), found()), (truth(), found())]).scores()
    assert scores["mAP"] == scores["AP50"] == scores["AR100"] == scores["mAP_known"] == 0.0


def test_no_ground_truth_at_all_has_no_score() -> None:
    assert all(math.isnan(value) for value in tally([(truth(), found(BOX))]).scores().values())


def test_a_class_without_ground_truth_is_left_out() -> None:
    result = tally([(truth(BOX), found(BOX, FAR, labels=[0, 1]))], classes=("cat", "dog"))
    assert result.scores()["mAP"] == pytest.approx(1.0)
    assert math.isnan(result.per_class()["dog"]["AP"])
    assert result.per_class()["dog"]["boxes"] == 0


def test_unknown_categories_count_as_missed_except_in_map_known() -> None:
    result = tally([(truth(BOX, FAR, labels=[0, 1]), found(BOX))], classes=("cat",), unknown=("zebra",))
    assert result.scores()["mAP"] == pytest.approx(0.5)
    assert result.scores()["mAP_known"] == pytest.approx(1.0)
    assert result.per_class()["zebra"] == {"AP": 0.0, "AP50": 0.0, "boxes": 1.0}
    assert list(result.per_class()) == ["cat", "zebra"]


def test_the_first_annotation_can_be_matched() -> None:
    # pycocotools takes a match with annotation id 0 for no match; recall would be 0 here.
    assert tally([(truth(BOX), found(BOX))]).scores()["AR100"] == pytest.approx(1.0)


def test_hits_are_right_boxes_of_known_classes_surest_first() -> None:
    first = truth(BOX, FAR, crowd=[False, True])
    boxes = [FAR, BOX, BOX, [0.0, 0.0, 5.0, 5.0]]
    tally = DetectionTally(
        (first, truth(labels=[])),
        (found(*boxes, scores=[0.95, 0.8, 0.7, 0.6]), found(BOX, scores=[0.9])),
        ("a",),
        ("unknown",),
    )
    scores, right = tally.hits()
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])  # the one on the crowd does not count
    assert right.tolist() == [False, True, False, False]  # an object is found once
    assert DetectionTally((truth(),), (found(),), ("a",)).hits()[0].size == 0


def test_every_image_needs_its_detections() -> None:
    with pytest.raises(ValueError, match="2 images but detections of 1"):
        DetectionTally((truth(), truth()), (found(),), ("cat",))


def random_pair(rng: np.random.Generator) -> tuple[Record, Detections]:
    corner, extent = rng.uniform(0, 200, (4, 2)), rng.uniform(20, 150, (4, 2))
    boxes = np.concatenate([corner, corner + extent], axis=1)
    moved = boxes + rng.normal(0, 8, boxes.shape)
    labels = rng.integers(0, 3, 4).tolist()
    return truth(*boxes.tolist(), labels=labels), found(
        *moved.tolist(), scores=rng.uniform(0, 1, 4).tolist(), labels=labels
    )


def test_resampling_images_equals_scoring_the_resampled_set() -> None:
    pairs = [random_pair(np.random.default_rng(seed)) for seed in range(6)]
    chosen = [5, 0, 0, 3, 5, 5, 1]
    whole = tally(pairs, classes=("a", "b", "c"))
    afresh = tally([pairs[i] for i in chosen], classes=("a", "b", "c"))
    assert whole.scores(chosen) == pytest.approx(afresh.scores(), nan_ok=True)
    assert whole.scores(chosen)["mAP"] != pytest.approx(whole.scores()["mAP"])
    # Scoring a resampled set leaves the tally as it was.
    assert whole.scores() == pytest.approx(tally(pairs, classes=("a", "b", "c")).scores(), nan_ok=True)


def test_scoring_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tally([(truth(BOX), found(BOX))]).scores()
    assert capsys.readouterr() == ("", "")


# --- segmentation


def test_confusion_and_iou_by_hand_with_void() -> None:
    mask = torch.tensor([[0, 0, 1], [1, 1, 255]])
    predicted = torch.tensor([[0, 1, 1], [1, 0, 1]])
    matrix = confusion_matrix(mask, predicted, num_classes=3, void=255)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    result = SegmentationTally(matrix[None], ("background", "cat", "dog"))
    # background: 1 of 3, cat: 2 of 4, dog: no pixel anywhere, so it does not count.
    assert result.scores() == pytest.approx({"mIoU": (1 / 3 + 1 / 2) / 2, "mIoU_foreground": 0.5, "pixel_acc": 0.6})
    assert result.per_class()["background"] == pytest.approx({"IoU": 1 / 3, "accuracy": 1 / 2, "pixels": 0.4})
    assert math.isnan(result.per_class()["dog"]["IoU"])


def test_a_class_that_is_predicted_but_absent_counts_zero() -> None:
    matrix = confusion_matrix(torch.tensor([[0, 0]]), torch.tensor([[0, 2]]), num_classes=3, void=255)
    assert SegmentationTally(matrix[None], ("background", "cat", "dog")).scores()["mIoU"] == pytest.approx(0.25)


def test_iou_is_of_the_whole_set_not_the_mean_over_images() -> None:
    first, second = [[8, 0], [0, 0]], [[1, 1], [1, 1]]
    result = SegmentationTally(np.array([first, second]), ("background", "cat"))
    assert result.scores()["mIoU"] == pytest.approx((9 / 11 + 1 / 3) / 2)
    assert result.scores([1, 1])["mIoU"] == pytest.approx(1 / 3)
    assert result.scores([0])["pixel_acc"] == 1.0


def test_only_void_has_no_score() -> None:
    matrix = confusion_matrix(torch.full((2, 2), 255), torch.zeros(2, 2, dtype=torch.int64), 2, void=255)
    assert all(math.isnan(v) for v in SegmentationTally(matrix[None], ("background", "cat")).scores().values())


@pytest.mark.parametrize(
    ("mask", "predicted", "sentence"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"truth has shape \(2, 3\), prediction \(3, 2\)"),
        (torch.full((1, 2), 7), torch.zeros(1, 2), "label 7 with 3 classes"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(mask: torch.Tensor, predicted: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        confusion_matrix(mask, predicted, num_classes=3, void=255)


def test_logits_are_upsampled_before_argmax_to_any_resolution() -> None:
    # Between a clear 0 (margin 3) and an unclear 1 (margin 1) the border lies where the margins cancel: 3/4
    # of the way. The pixels between the two lie at 1/8, 3/8, 5/8 and 7/8 of it, so only the last is class 1;
    # argmax before upsampling would make it two.
    logits = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    assert predicted_mask(logits, (1, 8)).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
    assert predicted_mask(logits, (5, 3)).shape == (5, 3)


@given(st.integers(2, 6), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_mean_iou_agrees_with_torchmetrics(num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, num_classes, (9, 7), generator=generator)
    predicted = torch.randint(0, num_classes, (9, 7), generator=generator)
    mask[torch.rand(9, 7, generator=generator) < 0.2] = 255
    matrix = confusion_matrix(mask, predicted, num_classes, void=255)
    expected = multiclass_jaccard_index(predicted, mask, num_classes, average="none", ignore_index=255)
    present = torch.tensor([bool(((mask == k) | ((predicted == k) & (mask != 255))).any()) for k in range(num_classes)])
    result = SegmentationTally(matrix[None], tuple(map(str, range(num_classes)))).scores()
    assert result["mIoU"] == pytest.approx(float(expected[present].mean()), abs=1e-5)
    assert matrix.sum() == (mask != 255).sum()


# --- classification


def test_top1_and_accuracy_by_hand_with_an_unknown_class() -> None:
    labels, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    result = ClassificationTally(labels, predicted, ("tench", "church"), unknown=("zebra",))
    assert result.scores() == pytest.approx({"Top-1": 2 / 4, "Top-1_known": 2 / 3})
    assert result.confusion().tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert result.per_class() == {
        "tench": {"accuracy": 0.5, "images": 2.0},
        "church": {"accuracy": 1.0, "images": 1.0},
        "zebra": {"accuracy": 0.0, "images": 1.0},
    }


def test_top1_of_resampled_images() -> None:
    result = ClassificationTally(np.array([0, 1]), np.array([0, 0]), ("tench", "church"))
    assert result.scores([0, 0, 0, 1])["Top-1"] == 0.75
    assert math.isnan(ClassificationTally(np.array([2]), np.array([0]), ("a", "b"), ("c",)).scores()["Top-1_known"])


def test_one_class_alone_is_scored() -> None:
    tally = ClassificationTally(np.array([0, 0]), np.array([0, 0]), ("tench",))
    assert tally.scores() == {"Top-1": 1.0, "Top-1_known": 1.0}
    assert tally.per_class() == {"tench": {"accuracy": 1.0, "images": 2.0}}


def test_one_of_several_processes_scores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object, **__: object) -> None:
        raise AssertionError("waits for other processes, which do not score")

    monkeypatch.setattr(metric, "jit_distributed_available", lambda: True)
    monkeypatch.setattr(metric, "gather_all_tensors", wait)
    assert SegmentationTally(np.array([[[2, 1], [0, 1]]]), ("a", "b")).scores()["mIoU"] == pytest.approx(
        (2 / 3 + 1 / 2) / 2
    )
