from __future__ import annotations

import torch

from models.boxes import pair_iou
from models.denoising import FAR, NEAR, denoising_boxes, one_run
from tests.models.builders import boxes_in_view, object_targets

SLOTS = 12

# A positive moves by at most NEAR / 2 and scales by at most 1 +- NEAR. Along one axis the overlap with its object of
# length 1 is then at least 1 - NEAR (the shorter copy lies inside), and the worst of all is the smallest copy.
LEAST_IOU = (1 - NEAR) ** 2


def run_many(count: int, times: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positives (p, 4), the boxes behind them (p, 4), and the run's other boxes, over many draws."""
    torch.manual_seed(0)
    positives, behind, rest = [], [], []
    for _ in range(times):
        boxes = boxes_in_view(count)
        found, objects = one_run(boxes, SLOTS)
        positives.append(found[: len(objects)])
        behind.append(boxes[objects])
        rest.append(found[len(objects) :])
    return torch.cat(positives), torch.cat(behind), torch.cat(rest)


def targets_of(*counts: int):
    torch.manual_seed(1)
    boxes = [boxes_in_view(n) for n in counts]
    # Labels that tell the objects of the whole batch apart.
    labels = [torch.arange(n) + 100 * b for b, n in enumerate(counts)]
    return object_targets(boxes, labels)


def test_shapes_and_types() -> None:
    boxes, match = denoising_boxes(targets_of(3, 0, 20), SLOTS, 2)
    assert (boxes.shape, boxes.dtype) == ((3, 2 * SLOTS, 4), torch.float32)
    assert boxes.isfinite().all()
    assert (boxes[..., 2:] > 0).all()
    assert {t.dtype for t in (match.image, match.query, match.labels)} == {torch.int64}
    assert match.boxes.shape == (2 * (3 + 12), 4)


def test_every_object_is_a_positive_once_in_each_run() -> None:
    targets = targets_of(3, 0, 12)
    _, match = denoising_boxes(targets, SLOTS, 2)
    for b, n in enumerate((3, 0, 12)):
        for g in range(2):
            mine = (match.image == b) & (match.query // SLOTS == g)
            assert sorted(match.labels[mine].tolist()) == [100 * b + i for i in range(n)]
            assert sorted((match.query[mine] % SLOTS).tolist()) == list(range(n))
    for box, label in zip(match.boxes, match.labels):
        assert torch.equal(box, targets.boxes[label // 100][label % 100])


def test_a_matched_box_is_the_noised_copy_of_its_object() -> None:
    targets = targets_of(3, 5, 12)
    boxes, match = denoising_boxes(targets, SLOTS, 2)
    assert (pair_iou(boxes[match.image, match.query], match.boxes) > LEAST_IOU - 1e-4).all()


def test_positives_overlap_their_object_but_are_noised() -> None:
    positives, behind, _ = run_many(5)
    iou = pair_iou(positives, behind)
    assert LEAST_IOU > 0.3
    assert iou.min() > LEAST_IOU - 1e-4
    assert iou.max() < 1
    assert iou.min() < 0.5  # the noise uses its room
    assert iou.mean() < 0.8


def test_negatives_are_copies_moved_far_along_both_axes() -> None:
    torch.manual_seed(0)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.1]])
    far = torch.cat([one_run(box, SLOTS)[0][1:] for _ in range(50)])
    away = (far[:, :2] - box[:, :2]) / box[:, 2:]
    assert away.abs().min() >= NEAR - 1e-5
    assert away.abs().max() <= FAR + 1e-5
    for axis in range(2):  # both sides
        assert 0.4 < (away[:, axis] > 0).float().mean() < 0.6
    assert ((far[:, 2:] / box[:, 2:] - 1).abs() <= NEAR + 1e-5).all()
    assert pair_iou(far, box.expand_as(far)).max() < LEAST_IOU


def test_an_image_without_objects_gets_boxes_and_no_match() -> None:
    boxes, match = denoising_boxes(targets_of(0, 0), SLOTS, 2)
    assert boxes.shape == (2, 2 * SLOTS, 4)
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., :2] <= 1).all()
    assert (boxes[..., 2:] >= 0.02).all()
    assert len(match.image) == len(match.query) == len(match.boxes) == len(match.labels) == 0


def test_more_objects_than_slots_fill_the_run_with_some_of_them() -> None:
    positives, behind, rest = run_many(30, times=5)
    assert (len(positives), len(rest)) == (5 * SLOTS, 0)
    assert (pair_iou(positives, behind) > LEAST_IOU - 1e-4).all()
    _, match = denoising_boxes(targets_of(30), SLOTS, 2)
    runs = [set(match.labels[match.query // SLOTS == g].tolist()) for g in range(2)]
    assert [len(run) for run in runs] == [SLOTS, SLOTS]
    assert runs[0] != runs[1]  # drawn anew


def test_runs_differ_and_follow_the_seed() -> None:
    targets = targets_of(3)
    torch.manual_seed(5)
    first, _ = denoising_boxes(targets, SLOTS, 2)
    torch.manual_seed(5)
    again, _ = denoising_boxes(targets, SLOTS, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first[:, :SLOTS], first[:, SLOTS:])
