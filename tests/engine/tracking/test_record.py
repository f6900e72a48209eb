"""What is kept of a stage for the report: classes, and pictures chosen by a fixed rule."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.types import Record, TaskSet
from engine.tracking.record import annotated, boxes, chosen, existing, predicted, regions


def sets(**sizes: int) -> dict:
    return {task: TaskSet(task, "val", "", ("a",), (Record(Path("x.jpg")),) * n) for task, n in sizes.items()}  # type: ignore[arg-type]


def test_pictures_are_chosen_evenly_spaced() -> None:
    found = chosen(sets(seg=60, det=60, cls=60))
    assert found == [
        *(("seg", i) for i in (10, 30, 50)),
        *(("det", i) for i in (10, 30, 50)),
        *(("cls", i) for i in (15, 45)),
    ]
    assert [task for task, _ in chosen(sets(seg=9, cls=9))] == ["seg"] * 4 + ["cls"] * 4
    assert chosen(sets(det=2)) == [("det", 0), ("det", 1)]


def test_undefined_scores_are_none() -> None:
    assert existing({"a": {"AP": float("nan"), "boxes": 0.0}}) == {"a": {"AP": None, "boxes": 0.0}}


def test_boxes_are_in_pixels_of_the_small_picture_and_the_surest_is_drawn_last() -> None:
    corners = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.5, 0.0, 1.5, 0.5]])
    found = boxes(corners, torch.tensor([1, 0]), torch.tensor([0.9, 0.4]), ("a", "b"), (200, 100))
    assert [(b["name"], b["score"], b["xywh"]) for b in found] == [
        ("a", 0.4, [100.0, 0.0, 100.0, 50.0]),  # inside the picture
        ("b", 0.9, [50.0, 50.0, 100.0, 50.0]),
    ]


def test_the_background_of_a_mask_is_clear_and_regions_have_their_share() -> None:
    mask = np.zeros((10, 40), dtype=np.int16)
    mask[:, 30:] = 2
    mask[0, 0] = 1  # too small to be named
    found = regions(mask, ("background", "a", "b"))
    assert found["regions"] == [{"name": "b", "share": 0.25, "colour": "#008000"}]
    with Image.open(io.BytesIO(base64.b64decode(found["mask"].split(",")[1]))) as picture:
        assert picture.size == (40, 10)
        assert picture.getpixel((5, 5))[3] == 0
        assert picture.getpixel((35, 5)) == (0, 128, 0, 255)


def test_annotations_leave_out_crowds_and_void(tmp_path: Path) -> None:
    record = Record(
        tmp_path / "x.jpg",
        torch.tensor([[0.0, 0, 50, 50], [50, 50, 100, 100]]),
        torch.tensor([0, 1]),
        torch.tensor([False, True]),
        torch.tensor([2500.0, 2500.0]),
    )
    found = annotated(TaskSet("det", "val", "", ("a",), (record,), ("new",)), record, (100, 100), (20, 20))
    assert [(b["name"], b["xywh"], "score" in b) for b in found["boxes"]] == [("a", [0.0, 0.0, 10.0, 10.0], False)]
    mask = np.full((4, 4), 255, dtype=np.uint8)
    mask[:2] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    record = Record(tmp_path / "x.jpg", mask=tmp_path / "m.png")
    found = annotated(TaskSet("seg", "val", "", ("background", "a"), (record,)), record, (4, 4), (2, 2))
    assert [(r["name"], r["share"]) for r in found["regions"]] == [("a", 0.5)]


class Labels:
    """A model of labels alone, which has no other classes."""

    classes = {"seg": (), "det": (), "cls": ("a", "b")}  # noqa: RUF012
    input_size = 32

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert images.shape == (1, 3, 32, 32)
        return {"pred_class": torch.tensor([[0.0, 1.0]])}


def test_tasks_without_classes_are_left_out() -> None:
    found = predicted(Labels(), Image.new("RGB", (50, 40)), (50, 40))  # type: ignore[arg-type]
    assert found == {"label": "b", "probability": pytest.approx(0.731)}
