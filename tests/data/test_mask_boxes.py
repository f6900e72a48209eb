"""Boxes that masks give: where regions lie, which are apart, and what augmentation does to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.composing import paste
from data.dataset import TaskDataset
from data.mask_boxes import box_labels, mask_boxes
from data.transforms import Augment
from data.types import MAX_BOXES, VOID, Record, TaskSet
from tests.data.builders import draw_image, draw_mask

CAT, DOG, SHEEP = 8, 12, 17
LABELS = {CAT: 3, DOG: 4}


def blank(side: int = 100) -> np.ndarray:
    return np.zeros((side, side), dtype=np.uint8)


def test_a_region_gives_one_box_with_its_label() -> None:
    mask = blank()
    mask[10:30, 40:80] = DOG
    mask[60:90, 0:20] = CAT
    boxes, labels = mask_boxes(mask, LABELS)
    assert boxes.tolist() == [[0, 60, 20, 90], [40, 10, 80, 30]]
    assert labels.tolist() == [3, 4]


def test_the_void_line_keeps_touching_objects_apart_and_gives_each_its_inner_half() -> None:
    mask = blank()
    mask[10:50, 10:70] = VOID
    mask[15:45, 15:40] = CAT
    mask[15:45, 45:65] = CAT
    boxes, labels = mask_boxes(mask, LABELS)
    assert boxes.tolist() == [[13, 13, 42, 47], [43, 13, 67, 47]]
    assert labels.tolist() == [3, 3]


def test_classes_that_boxes_do_not_name_and_crumbs_give_none() -> None:
    mask = blank()
    mask[10:30, 10:30] = SHEEP
    mask[50:51, 50:90] = CAT  # one pixel of a hundred high
    for labels in (LABELS, {}):
        boxes, found = mask_boxes(mask, labels)
        assert boxes.shape == (0, 4)
        assert found.shape == (0,)
        assert (boxes.dtype, found.dtype) == (torch.float32, torch.int64)


def test_without_a_void_line_touching_objects_share_a_box() -> None:
    mask = blank()
    mask[15:45, 15:40] = CAT
    mask[15:45, 40:65] = CAT
    assert mask_boxes(mask, LABELS)[0].tolist() == [[15, 15, 65, 45]]


def test_the_largest_boxes_of_very_many_stay(tmp_path: Path) -> None:
    mask = blank(500)
    mask[::12] = VOID
    mask[:, ::12] = VOID
    mask[mask == 0] = CAT
    record = Record(draw_image(tmp_path / "a.png", (500, 500)), mask=draw_mask(tmp_path / "m.png", mask))
    task_set = TaskSet("seg", "train", "voc", tuple(map(str, range(21))), (record,))
    sample = TaskDataset(task_set, 64, None, box_labels=LABELS)[0]
    assert sample.boxes is not None
    assert len(mask_boxes(mask, LABELS)[0]) > len(sample.boxes) == MAX_BOXES


def test_boxes_move_with_the_image(tmp_path: Path) -> None:
    mask = blank(64)
    mask[16:48, 8:24] = CAT
    image = draw_image(tmp_path / "a.png", (64, 64))
    record = Record(image, mask=draw_mask(tmp_path / "m.png", mask))
    task_set = TaskSet("seg", "train", "voc", tuple(map(str, range(21))), (record,))
    zoomed = TaskDataset(task_set, 64, Augment(color=0, grey=0), box_labels=LABELS)
    for epoch in range(8):
        zoomed.set_epoch(epoch)
        sample = zoomed[0]
        assert sample.boxes is not None
        assert sample.mask is not None
        assert sample.labels is not None
        assert sample.labels.tolist() == [3]
        rows, columns = (sample.mask == CAT).nonzero(as_tuple=True)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 64
        centre, size = sample.boxes[0, :2], sample.boxes[0, 2:]
        torch.testing.assert_close(torch.cat([centre - size / 2, centre + size / 2]), seen, atol=0.02, rtol=0)
    assert TaskDataset(task_set, 64, Augment())[0].boxes is None


def test_pasted_objects_end_what_boxes_knew(tmp_path: Path) -> None:
    record = Record(draw_image(tmp_path / "a.png"), mask=draw_mask(tmp_path / "m.png"))
    task_set = TaskSet("seg", "train", "voc", tuple(map(str, range(21))), (record,))
    sample = TaskDataset(task_set, 32, None, box_labels={15: 0})[0]
    assert sample.boxes is not None
    assert paste(sample, replace(sample)).boxes is None


def test_names_that_two_sets_share() -> None:
    assert box_labels(("background", "diningtable", "dog"), ("dog", "cup", "dining table")) == {1: 2, 2: 0}
    assert box_labels(("background", "cat"), ("dog", "background")) == {}
