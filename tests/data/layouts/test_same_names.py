"""Three tasks and two splits side by side whose files are all called the same: folders alone tell them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.catalog import load_set
from tests.data.builders import annotation, coco, draw_image, draw_mask, mask_values, write_json

NAMES = ("000001", "000002", "000003")
CLASSES = ("church", "tench")
LEFT = {"train": 3, "test": 12}
"""Where the boxes of a split begin; those of its image number k are k pixels wide."""

Layout = tuple[str, str, str, str, str]
LAYOUTS: tuple[Layout, ...] = (
    # images and annotations of det, images and masks of seg, class folders; * is the split
    ("coco_det/*/images", "coco_det/*/annotations.json", "voc_seg/*/images", "voc_seg/*/masks", "imagenette/*"),
    ("mini_coco_det/*", "mini_coco_det/annotations/instances_*.json", "voc/*", "voc/*", "imagenette-160/*"),
    ("mini_coco_det/*", "annotations/instances_*.json", "mini_voc_seg/*/images", "mini_voc_seg/*/masks", "cls/*"),
    ("*2017", "annotations/instances_*2017.json", "VOC/*/JPEGImages", "VOC/*/SegmentationClass", "imagenette/*"),
    ("coco/*2017", "coco/annotations/instances_*2017.json", "voc/*/images", "voc/*/annotations", "imagenet/*"),
    ("det/*/data", "det/*/labels.json", "seg/*/images", "seg/*/labels", "cls/*"),
    ("det/images/*", "det/annotations/*.json", "seg/images/*", "seg/masks/*", "cls/images/*"),
    ("a/*/images", "a/*/annotations/instances_*_mini.json", "b/*/images", "b/*/masks", "c/*"),
    ("task1/*", "task1/*/instances_*.json", "task2/*", "task2/*", "task3/*"),
    ("*/det_images", "*/det.json", "*/seg_images", "*/seg_masks", "*/cls_images"),
    ("*/det", "*/det.json", "*/seg/images", "*/seg/masks", "*/cls"),
    ("*/detection", "*/detection/annotations.json", "*/segmentation", "*/segmentation", "*/classification"),
    ("*/images/det", "*/annotations/det.json", "*/images/seg", "*/annotations/seg", "*/images/cls"),
    ("*/images_coco", "*/coco.json", "*/images_voc", "*/masks", "*/imagenette"),
    ("images/det/*", "annotations/det_*.json", "images/seg/*", "masks/*", "images/cls/*"),
    ("detection/images/*", "annotations/det_*.json", "segmentation/images/*", "annotations/segmentation/*", "cls/*"),
    ("detection/*", "detection_*.json", "segmentation/*/images", "segmentation/*/masks", "classification/*"),
    ("det_*", "det_*.json", "seg_*", "seg_masks_*", "cls_*"),
    ("*/images", "*/annotations.json", "*", "*", "imagenette_*"),
    ("*2017", "annotations/instances_*2017.json", "*", "*", "cls/*"),
    ("*/images", "*/annotations.json", "voc_*/images", "voc_*/masks", "imagenette_*"),
    ("det/images/*", "det/labels/*", "aseg/images/*", "aseg/masks/*", "cls/*"),
    ("*/det_images", "*/det_labels", "*/aseg/images", "*/aseg/masks", "*/cls"),
    ("*/images/det", "*/labels/det", "*/images/seg", "*/labels/seg", "*/images/cls"),
)  # fmt: skip
UNSPLIT: tuple[Layout, ...] = (
    ("images/det", "annotations/det.json", "images/seg", "masks", "images/cls"),
    ("det_images", "annotations/det.json", "seg_images", "seg_masks", "cls_images"),
    ("detection", "detection.json", "segmentation/images", "segmentation/masks", "classification"),
    ("images_coco", "coco.json", "images_voc", "masks", "imagenette"),
    ("det_images", "det_labels", "aseg/images", "aseg/masks", "cls_images"),
    ("images", "annotations.json", "segmentation/images", "segmentation/masks", "classification"),
    ("images", "annotations/det.json", "seg_images", "annotations/seg", "cls"),
)


def build(root: Path, layout: Layout, split: str) -> None:
    """Draw the three sets of one split."""
    det, boxes, seg, masks, cls = (root / part.replace("*", split) for part in layout)
    for number, name in enumerate(NAMES):
        draw_image(det / f"{name}.jpg")
        draw_image(seg / f"{name}.jpg")
        draw_mask(masks / f"{name}.png", mask_values())
        for each in CLASSES:
            draw_image(cls / each / f"{name}.jpg")
        if not boxes.suffix:
            boxes.mkdir(parents=True, exist_ok=True)
            centre = (LEFT[split] + (number + 1) / 2) / 32
            (boxes / f"{name}.txt").write_text(f"0 {centre} 0.5 {(number + 1) / 32} 0.25\n")
    found = [annotation(k + 1, 1, [LEFT[split], 9, k + 1, 6]) for k in range(len(NAMES))]
    if boxes.suffix:
        write_json(boxes, coco([f"{name}.jpg" for name in NAMES], found, {1: "cat"}))


def check(root: Path, layout: Layout, split: str, wanted: str | None) -> None:
    """Assert that every task reads the images and the annotations of its own, of one split."""
    det, _, seg, masks, cls = (root / part.replace("*", split) for part in layout)
    boxes = load_set(root, "det", wanted)
    assert [record.image for record in boxes.records] == [det / f"{name}.jpg" for name in NAMES]
    corners = [[[LEFT[split], 9, LEFT[split] + k + 1, 15]] for k in range(len(NAMES))]
    assert [record.boxes.tolist() for record in boxes.records] == corners
    pairs = [(record.image, record.mask) for record in load_set(root, "seg", wanted).records]
    assert pairs == [(seg / f"{name}.jpg", masks / f"{name}.png") for name in NAMES]
    labels = load_set(root, "cls", wanted)
    assert set(labels.classes) == set(CLASSES)
    owned = {(record.image, labels.classes[record.label]) for record in labels.records}
    assert owned == {(cls / each / f"{name}.jpg", each) for each in CLASSES for name in NAMES}


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_each_task_reads_its_own_files(tmp_path: Path, layout: Layout) -> None:
    for split in LEFT:
        build(tmp_path, layout, split)
    for split in LEFT:
        check(tmp_path, layout, split, split)
    check(tmp_path, layout, "test", None)


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_each_task_reads_its_own_files_of_a_hidden_split(tmp_path: Path, layout: Layout) -> None:
    build(tmp_path, layout, "test")
    check(tmp_path, layout, "test", None)


@pytest.mark.parametrize("layout", UNSPLIT, ids=" ".join)
def test_each_task_reads_its_own_files_without_splits(tmp_path: Path, layout: Layout) -> None:
    build(tmp_path, layout, "test")
    check(tmp_path, layout, "test", None)


def test_images_of_another_task_serve_where_there_are_no_others(tmp_path: Path) -> None:
    root = tmp_path / "images of both"
    build(root, ("detection/images", "detection.json", "detection/images", "segmentation/masks", "cls"), "test")
    check(root, ("detection/images", "detection.json", "detection/images", "segmentation/masks", "cls"), "test", None)


def test_a_folder_of_another_task_serves_where_the_boxes_list_it(tmp_path: Path) -> None:
    names = [f"segmentation/images/{name}.jpg" for name in NAMES]
    for path in (*names, *(f"images/{name}.jpg" for name in NAMES)):
        draw_image(tmp_path / path)
    write_json(tmp_path / "annotations" / "det.json", coco(names, [annotation(1, 1, [3, 9, 5, 6])], {1: "cat"}))
    found = load_set(tmp_path, "det")
    assert [record.image for record in found.records] == [tmp_path / name for name in names]


@pytest.mark.parametrize("name", ["det.json", "labels"])
def test_folders_that_serve_equally_well_are_mentioned(tmp_path: Path, name: str) -> None:
    build(tmp_path, ("red", name, "red", "masks", "cls"), "test")
    for each in NAMES:
        draw_image(tmp_path / "yellow" / f"{each}.jpg")
    for task in ("det", "seg"):
        found = load_set(tmp_path, task)
        assert {record.image.parent.name for record in found.records} == {"red"}
        assert "images of the same names lie in yellow/ too (not used)" in found.notes


def test_parts_of_a_set_keep_to_their_own_names(tmp_path: Path) -> None:
    for part in ("cam1", "cam2", "cam3"):
        for name in NAMES:
            draw_image(tmp_path / "images" / part / f"{name}.jpg")
            if part != "cam1":
                draw_mask(tmp_path / "masks" / part / f"{name}.png", mask_values())
    found = load_set(tmp_path, "seg")
    assert {(record.image.parent.name, record.mask.parent.name) for record in found.records} == {
        ("cam2", "cam2"),
        ("cam3", "cam3"),
    }
    assert not any("same names" in note for note in found.notes)
