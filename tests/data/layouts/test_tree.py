from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.layouts.tree import MAX_DEPTH, listing, role_of, scan, split_of, split_rank, task_rank, words


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


def test_what_names_mean() -> None:
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


def test_scan_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a/b", ".hidden", "__MACOSX/a"):
        (root / name).mkdir(parents=True)
    (root / "a" / "x.JPG").touch()
    (root / "a" / "._x.jpg").touch()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(root, root / "a" / "b" / "up")
    os.symlink(tmp_path / "elsewhere", root / "link")
    tree = scan(root)
    assert [folder.names for folder in tree.folders] == [(), ("a",), ("link",), ("a", "b")]
    assert tree.folders[1].images == ("x.JPG",)


def test_scan_is_bounded_in_depth(tmp_path: Path) -> None:
    tmp_path.joinpath(*"abcdefghijkl").mkdir(parents=True)
    assert max(len(folder.names) for folder in scan(tmp_path).folders) == MAX_DEPTH
