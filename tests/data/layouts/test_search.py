from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from data.catalog import load_set
from data.errors import DataError
from data.layouts.search import find_set
from data.types import Task, TaskSet
from tests.data.builders import (
    annotation,
    cls_set,
    coco,
    det_set,
    draw_image,
    draw_mask,
    seg_set,
    write_json,
)

SPLITS = ("train", "val", "test")
IMAGENETTE_IDS = ("n01440764", "n02102040", "n02979186")
IMAGENETTE_NAMES = ("tench", "English springer", "cassette player")

DET = [
    ("{split}/images", "{split}/annotations.json"),
    ("{split}", "annotations/instances_{split}.json"),
    ("{split}", "annotations/instances_{split}2017.json"),
    ("{split}", "annotations/mini_instances_{split}2017.json"),
    ("{split}", "{split}/instances_{split}.json"),
    ("{split}/images", "{split}/annotations/instances_{split}_mini.json"),
    ("{split}/images", "{split}/annotations/{split}.json"),
    ("images/{split}", "annotations/instances_{split}.json"),
    ("images/{split}", "annotations/{split}.json"),
    ("{split}/data", "{split}/labels.json"),
    ("{split}2017", "annotations/instances_{split}2017.json"),
    # not in the list of layouts seen:
    ("images", "annotations/{split}.json"),
    ("{split}_images", "{split}_labels.json"),
    ("coco_{split}/pictures/jpg", "coco_{split}/boxes.json"),
]
SEG = [
    ("{split}/images", "{split}/masks"),
    ("{split}", "{split}"),
    ("{split}/JPEGImages", "{split}/SegmentationClass"),
    ("{split}/images", "{split}/annotations"),
    # not in the list of layouts seen:
    ("images/{split}", "masks/{split}"),
    ("{split}_images", "{split}_masks"),
    ("images", "masks/{split}"),
    ("pictures/{split}", "painted/{split}"),
]
CLS = [
    ("{split}", IMAGENETTE_IDS),
    ("{split}", ("tench", "English_springer", "cassette-player")),
    ("{split}", ("0", "1", "2")),
    ("images/{split}", ("n01440764-tench", "n02102040-springer", "n02979186-player")),
    ("imagenette_{split}/images", IMAGENETTE_IDS),
    # not in the list of layouts seen: the split below the class
    (".", tuple(f"{name}/{{split}}" for name in IMAGENETTE_IDS)),
]
FOLDERS: dict[Task, tuple[str, ...]] = {
    "det": ("mini_coco_det", "mini-coco-det", "minicocodet", "COCO", "detection", "det", "set_a"),
    "seg": ("mini_voc_seg", "mini-voc-seg", "VOCdevkit/VOC2012", "segmentation", "seg", "voc", "set_b"),
    "cls": (
        "imagenette_160",
        "imagenette-160",
        "imagenette160",
        "imagenette2-160",
        "classification",
        "cls",
        "c",
    ),
}


def build(root: Path, task: Task, layout: int, split: str) -> None:
    if task == "det":
        det_set(root, *DET[layout], split)
    elif task == "seg":
        seg_set(root, *SEG[layout], split)
    else:
        cls_set(root, CLS[layout][0], split, CLS[layout][1])


def check(found: TaskSet, split: str) -> None:
    """Assert that exactly the drawn records of one split were read."""
    stems = [record.image.stem for record in found.records]
    if found.task == "cls":
        # Two images a class, in the order of their names; the classes are the same under any folder name.
        assert len(stems) == 6
        assert all(stem.startswith(f"{split}_") for stem in stems)
        assert found.classes == IMAGENETTE_NAMES
        assert sorted(record.label for record in found.records) == [0, 0, 1, 1, 2, 2]
        return
    assert stems == [f"{split}0", f"{split}1", f"{split}2"]
    if found.task == "seg":
        assert [record.mask.stem for record in found.records] == stems
        assert found.classes[15] == "person"
        return
    assert found.classes == ("cat", "dog")
    assert [record.labels.tolist() for record in found.records] == [[0], [1], []]
    assert found.records[0].boxes.tolist() == [[1, 2, 11, 10]]


ROWS = [(task, row) for task, rows in (("det", DET), ("seg", SEG), ("cls", CLS)) for row in range(len(rows))]


@pytest.mark.parametrize(("task", "row"), ROWS)
def test_every_layout_gives_the_same_records(tmp_path: Path, task: Task, row: int) -> None:
    own = tmp_path / "DL" / FOLDERS[task][0]
    for split in SPLITS:
        build(own, task, row, split)
    for split, synonym in zip(SPLITS, ("training", "validation", "test2017")):
        check(load_set(tmp_path / "DL", task, split), split)
        found = load_set(own, task, synonym)
        check(found, split)
        # A folder that all splits share gives no false alarm about images or masks without a partner.
        assert task == "det" or found.notes == ()


@pytest.mark.parametrize(("task", "row"), ROWS)
@pytest.mark.parametrize("only", ["test", "val"])
def test_hidden_set_in_every_layout(tmp_path: Path, task: Task, row: int, only: str) -> None:
    build(tmp_path / "hidden_root" / FOLDERS[task][0], task, row, only)
    check(load_set(tmp_path / "hidden_root", task), only)


@pytest.mark.parametrize("position", range(7))
def test_folder_names_and_all_tasks_side_by_side(tmp_path: Path, position: int) -> None:
    root = tmp_path / "data" / "data"
    for task in FOLDERS:
        for split in SPLITS:
            build(root / FOLDERS[task][position], task, 0, split)
    for task in FOLDERS:
        for split in SPLITS:
            check(load_set(tmp_path / "data", task, split), split)


@pytest.mark.parametrize("outer", ["test", "val"])
@pytest.mark.parametrize("names", [("mini_coco_det", "mini_voc_seg", "imagenette_160"), ("det", "seg", "cls")])
def test_split_folder_above_the_tasks(tmp_path: Path, outer: str, names: tuple[str, ...]) -> None:
    for task, name in zip(FOLDERS, names):
        own = tmp_path / "root" / outer / name
        if task == "det":
            det_set(own, "images", "annotations.json", outer)
        elif task == "seg":
            seg_set(own, "images", "masks", outer)
        else:
            cls_set(own, ".", outer, IMAGENETTE_IDS)
    for task in FOLDERS:
        check(load_set(tmp_path / "root", task), outer)
        check(load_set(tmp_path / "root" / outer, task), outer)


def test_no_split_anywhere_means_everything(tmp_path: Path) -> None:
    root = tmp_path / "root"
    det_set(root / "a", ".", "boxes.json", "x")
    seg_set(root / "b", ".", ".", "x")
    cls_set(root / "c", ".", "x", ("tench", "English_springer", "cassette_player"))
    for task in FOLDERS:
        for split in (None, "val", "train"):
            found = load_set(root, task, split)
            check(found, "x")
            assert found.split == "all"
            assert "no split is named anywhere" in found.notes[0]


def test_split_none_prefers_test_then_val_then_train(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        build(tmp_path / "root", "cls", 0, split)
        expected = split
        assert find_set(tmp_path / "root", "cls").split == expected


@pytest.mark.parametrize("lists", [("train", "val"), ("train240", "val60")])
def test_voc_tree_with_split_lists(tmp_path: Path, lists: tuple[str, str]) -> None:
    voc = tmp_path / "root" / "VOCdevkit" / "VOC2012"
    for split, name in zip(("train", "val"), lists):
        seg_set(voc, "JPEGImages", "SegmentationClass", split)
        stems = [f"{split}{number}" for number in range(3)]
        for stem in stems:
            # numbers of objects look like classes; lists of other tasks look like lists of this one
            draw_mask(voc / "SegmentationObject" / f"{stem}.png")
        for folder, some in (("Segmentation", stems), ("Main", stems[:1])):
            (voc / "ImageSets" / folder).mkdir(parents=True, exist_ok=True)
            (voc / "ImageSets" / folder / f"{name}.txt").write_text("\n".join(some) + "\n")
    draw_image(voc / "JPEGImages" / "detection_only.jpg")
    for root in (tmp_path / "root", voc):
        for split in ("train", "val"):
            found = load_set(root, "seg", split)
            check(found, split)
            assert {record.mask.parent.name for record in found.records} == {"SegmentationClass"}
    assert find_set(voc, "seg").split == "val"


def test_small_split_list_is_preferred_to_the_official_one(tmp_path: Path) -> None:
    seg_set(tmp_path, "JPEGImages", "SegmentationClass", "train")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("train0\ntrain1\ntrain2\n")
    (lists / "train2.txt").write_text("train0\nJPEGImages/train2.jpg SegmentationClass/train2.png\n")
    found = load_set(tmp_path, "seg", "train")
    assert [record.image.stem for record in found.records] == ["train0", "train2"]


def test_detection_file_is_chosen_among_other_json(tmp_path: Path) -> None:
    for split in ("train", "val"):
        det_set(tmp_path, "{split}2017", "annotations/instances_{split}2017.json", split)
        names = [f"{split}{number}.jpg" for number in range(3)]
        captions = coco(names, [{"image_id": 1, "caption": "a cat"}], {})
        write_json(tmp_path / "annotations" / f"captions_{split}2017.json", captions)
        people = coco(names, [annotation(1, 1, [0, 0, 5, 5], keypoints=[0] * 51)], {1: "person"})
        write_json(tmp_path / "annotations" / f"a_{split}2017.json", people)
        write_json(tmp_path / f"{split}2017" / "settings.json", ["no", "object"])
    for split in ("train", "val"):
        check(load_set(tmp_path, "det", split), split)


def test_keypoints_of_persons_are_not_taken_for_the_detection_file(tmp_path: Path) -> None:
    det_set(tmp_path, "{split}", "b_{split}.json", "val")
    people = coco(["val0.jpg", "val1.jpg", "val2.jpg"], [annotation(1, 1, [0, 0, 5, 5], keypoints=[])], {1: "p"})
    write_json(tmp_path / "a_val.json", people)
    check(load_set(tmp_path, "det", "val"), "val")


def test_annotations_of_another_split_are_never_used(tmp_path: Path) -> None:
    # The same file names in both splits: only folders tell them apart.
    for split in ("train", "val"):
        for number in range(3):
            draw_image(tmp_path / "root" / split / "images" / f"{number}.jpg")
    boxes = [annotation(1, 1, [1, 1, 5, 5])]
    write_json(tmp_path / "root/train/annotations.json", coco(["0.jpg", "1.jpg", "2.jpg"], boxes, {1: "cat"}))
    with pytest.raises(DataError, match=r"no val split of a detection set .* other splits found: train"):
        load_set(tmp_path / "root", "det", "val")
    (tmp_path / "root/val/annotations.json").write_text("{broken")
    for split in ("val", None):
        with pytest.raises(DataError, match=r"val/annotations.json: not valid JSON"):
            load_set(tmp_path / "root", "det", split)


def test_missing_set_names_root_content_and_remedy(tmp_path: Path) -> None:
    cls_set(tmp_path / "imagenette", "{split}", "train", IMAGENETTE_IDS)
    for task, what in (("det", "COCO JSON"), ("seg", "PNG masks")):
        with pytest.raises(DataError, match=what) as caught:
            find_set(tmp_path, task, "val")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}: no val split")
        assert "it holds imagenette/" in message
        assert "python -m data.download --root data" in message
    with pytest.raises(DataError, match="other splits found: train"):
        find_set(tmp_path, "cls", "val")
    with pytest.raises(DataError, match="no such folder"):
        find_set(tmp_path / "absent", "cls")
    with pytest.raises(DataError, match="split 'exam' is unknown; use one of train, val, test"):
        find_set(tmp_path, "cls", "exam")


def test_sets_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    built = {"det": tmp_path / "det_only", "seg": tmp_path / "seg_only", "cls": tmp_path / "cls_only"}
    for task, root in built.items():
        build(root / "set", task, 0, "val")
        build(root / "flat", task, 1, "val")
    for task, root in built.items():
        for other in FOLDERS:
            if other != task:
                with pytest.raises(DataError, match="found below it"):
                    find_set(root, other)


def test_folders_of_other_sets_are_no_classes(tmp_path: Path) -> None:
    det_set(tmp_path / "a", ".", "boxes.json", "x")
    seg_set(tmp_path / "b", ".", ".", "x")
    with pytest.raises(DataError, match="no classification set"):
        find_set(tmp_path, "cls")


def test_a_folder_that_names_another_task_is_left_alone(tmp_path: Path) -> None:
    cls_set(tmp_path / "segmentation", "{split}", "val", ("cat", "dog"))
    det_set(tmp_path / "segmentation", "boxes/{split}", "boxes/{split}.json", "val")
    for task in ("cls", "det"):
        with pytest.raises(DataError, match="found below it"):
            find_set(tmp_path, task)


def test_a_stray_folder_does_not_stand_in_for_a_missing_split(tmp_path: Path) -> None:
    cls_set(tmp_path / "imagenette", "{split}", "train", IMAGENETTE_IDS)
    cls_set(tmp_path / "stray", ".", "x", IMAGENETTE_IDS)
    with pytest.raises(DataError, match=r"no val split .* other splits found: train"):
        find_set(tmp_path, "cls", "val")


def test_the_name_of_a_class_does_not_name_the_split(tmp_path: Path) -> None:
    cls_set(tmp_path / "cls", "train", "train", ("test_tube", "flask"))
    assert load_set(tmp_path, "cls", "train").classes == ("flask", "test_tube")
    with pytest.raises(DataError, match="no test split"):
        find_set(tmp_path, "cls", "test")


def test_training_never_takes_a_root_called_val(tmp_path: Path) -> None:
    cls_set(tmp_path / "val", ".", "val", IMAGENETTE_IDS)
    check(load_set(tmp_path / "val", "cls", "val"), "val")
    with pytest.raises(DataError, match="no train split"):
        load_set(tmp_path / "val", "cls", "train")


def test_drawn_sets_do_not_stand_in_for_real_ones(tmp_path: Path) -> None:
    build(tmp_path / "synthetic" / "mini_coco_det", "det", 0, "val")
    with pytest.raises(DataError, match="no detection set"):
        find_set(tmp_path, "det")
    check(load_set(tmp_path / "synthetic", "det"), "val")


def test_links_in_circles_and_linked_splits(tmp_path: Path) -> None:
    build(tmp_path / "a" / "mini_coco_det", "det", 0, "val")
    os.symlink(tmp_path, tmp_path / "a" / "up", target_is_directory=True)
    os.symlink("self", tmp_path / "a" / "self")
    os.symlink("val", tmp_path / "a" / "mini_coco_det" / "test", target_is_directory=True)
    started = time.monotonic()
    check(load_set(tmp_path, "det", "val"), "val")
    check(load_set(tmp_path, "det", "test"), "val")
    assert time.monotonic() - started < 5


def test_many_class_folders_of_png_are_searched_quickly(tmp_path: Path) -> None:
    for name in range(150):
        (tmp_path / "cls" / "train" / f"c{name}").mkdir(parents=True)
        for number in range(10):
            (tmp_path / "cls" / "train" / f"c{name}" / f"{number}.png").touch()
    started = time.monotonic()
    with pytest.raises(DataError, match="no segmentation set"):
        find_set(tmp_path, "seg")
    assert time.monotonic() - started < 5
    assert len(find_set(tmp_path, "cls", "train").images) == 1500


@pytest.mark.parametrize("name", ["car-parts-segmentation-2", "my-classification-project", "x"])
def test_a_task_word_in_a_given_name_hides_nothing(tmp_path: Path, name: str) -> None:
    for split in ("train", "valid", "test"):
        names = [f"{k}_jpg.rf.{split}.jpg" for k in range(2)]
        for image in names:
            draw_image(tmp_path / name / split / image)
        document = coco(names, [annotation(1, 1, [1, 2, 10, 8])], {0: "things", 1: "disc"})
        write_json(tmp_path / name / split / "_annotations.coco.json", document)
    for split in ("train", "val", "test"):
        found = load_set(tmp_path, "det", split)
        assert found.classes == ("disc",)
        assert len(found.records) == 2
    seg_set(tmp_path / "crack-detection", "{split}/images", "{split}/masks", "test")
    check(load_set(tmp_path, "seg", "test"), "test")


def test_a_set_hidden_by_its_name_is_mentioned(tmp_path: Path) -> None:
    cls_set(tmp_path / "segmentation", "{split}", "val", ("cat", "dog"))
    with pytest.raises(DataError, match=r"segmentation/val looks like one, but a folder's name .*: give .*val as root"):
        find_set(tmp_path, "cls", "val")
