from __future__ import annotations

import pytest

from data.tree import listing, role_of, split_of, split_rank, task_rank, words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VOCdevkit", ["voc", "devkit"]),
        ("minicocodet", ["mini", "coco", "det"]),
        ("imagenette2-160", ["imagenette"]),
        ("avocado", ["avocado"]),
        ("test_tube", ["test", "tube"]),
        ("n01440764", []),
    ],
)
def test_words(name: str, expected: list[str]) -> None:
    assert words(name) == expected


def test_what_names_say() -> None:
    assert split_of("instances_val2017") == "val"
    assert split_of("VOC2012_train_val") is None
    assert task_rank(("mini_coco_det", "train"), "det") == 0
    assert task_rank(("coco", "masks"), "seg") == 2
    assert task_rank(("coco", "segmentation"), "det") == 3
    assert task_rank(("coconut",), "det") == 1
    assert split_rank(("test", "set", "val"), "val") == 0
    assert split_rank(("test", "set", "val"), "test") == 1
    assert split_rank(("set", "images"), "test") == 2
    assert split_rank(("train", "images"), "test") == 3
    assert role_of(("masks", "val")) == "mask"
    assert role_of(("VOC2012", "SegmentationClassRaw")) == "mask"
    assert role_of(("annotations", "JPEGImages")) == "image"
    assert role_of(("mini_voc_seg", "val")) is None


def test_listing() -> None:
    assert listing([]) == ""
    assert listing(["a", "b"]) == "a, b"
    assert listing(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
