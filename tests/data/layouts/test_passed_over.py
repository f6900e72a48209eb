"""Exports of usual tools that are not read are named, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import SetNotFound
from data.layouts.search import find_set
from data.types import Task
from tests.data.builders import annotation, coco, draw_image, draw_mask, write_json

TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,32,24,cat,1,2,11,10\n"
CVAT = "<annotations><image name='a.jpg'><box label='cat' xtl='1' ytl='2' xbr='11' ybr='10'/></image></annotations>"

VIA = """{"a.jpg8245": {"filename": "a.jpg", "regions": [{"shape_attributes":
{"name": "rect", "x": 1, "y": 2, "width": 10, "height": 8}, "region_attributes": {"label": "cat"}}]}}"""
CVAT_TAG = "<annotations><image name='a.jpg'><tag label='cat'></tag></image></annotations>"
COCO = coco(["a.jpg"], [annotation(1, 7, [1, 2, 10, 8])], {7: "cat"})
PANOPTIC = {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 7}]}]}
LABELME = """<annotation><filename>a.jpg</filename><object><name>cat</name><polygon>
<pt><x>1</x><y>2</y></pt><pt><x>11</x><y>2</y></pt><pt><x>11</x><y>10</y></pt></polygon></object></annotation>"""


@pytest.mark.parametrize(
    ("task", "name", "text", "sentence"),
    [
        ("det", "_annotations.csv", TABLE, "boxes in a table: export COCO JSON, YOLO text files or VOC XML files"),
        ("det", "annotations.xml", CVAT, "boxes in CVAT's own form: export COCO JSON"),
        ("det", "tasks.json", '[{"annotations": [{"type": "rectanglelabels"}]}]', "boxes in its tool's form"),
        ("det", "via.csv", "filename,region_shape_attributes\n", "boxes in a table: export COCO JSON"),
        ("seg", "via_region_data.json", VIA, "polygons: draw its polygons into a PNG per image"),
        ("det", "via_region_data.json", VIA, "boxes in its tool's form: export COCO JSON, YOLO text files or VOC XML"),
        ("cls", "all.txt", "a.jpg 0\nb.jpg 1\n", "labels in a list: put the images of each class into a folder"),
        ("cls", "a_train.txt", "a  1\nb -1\n", "labels in a list: put the images of each class into a folder"),
        ("cls", "labels.json", '{"annotations": [{"image_id": 1, "category_id": 2}]}', "labels in a document: put"),
        ("cls", "annotations.xml", CVAT_TAG, "labels in CVAT's own form: put the images of each class into a folder"),
        ("cls", "train.csv", "image_id,label\na.jpg,cat\n", "labels in a table: put the images of each class into a"),
        ("cls", "test.csv", "image,target\na.jpg,3\n", "labels in a table: put the images of each class into a"),
        ("cls", "test.csv", "file,y\na.jpg,3\n", "labels in a table: put the images of each class into a folder"),
        ("cls", "test.csv", '"id";"has_cactus"\na.jpg;1\n', "labels in a table: put the images of each class into a"),
        ("cls", "test.csv", "path,wnid\na.jpg,n01440764\n", "labels in a table: put the images of each class into"),
        (
            "cls",
            "labels.json",
            '{"a.jpg": "tench"}',
            "labels in a document: put the images of each class into a folder",
        ),
        ("cls", "labels.json", '{\n "test/a.JPEG": 3}', "labels in a document: put the images of each class into a"),
    ],
)
def test_a_file_that_is_not_read_is_named(tmp_path: Path, task: Task, name: str, text: str, sentence: str) -> None:
    draw_image(tmp_path / "images" / "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(SetNotFound) as caught:
        find_set(tmp_path, task)
    assert f"{tmp_path / name} is not read, it holds {sentence}" in str(caught.value)


def test_polygons_are_no_masks(tmp_path: Path) -> None:
    draw_image(tmp_path / "images" / "a.jpg")
    polygon = annotation(1, 7, [1, 2, 10, 8], segmentation=[[1, 2, 11, 2, 11, 10]])
    write_json(tmp_path / "annotations.json", coco(["a.jpg"], [polygon], {7: "cat"}))
    assert len(find_set(tmp_path, "det").images) == 1
    with pytest.raises(SetNotFound, match=r"annotations.json is not read, it holds polygons: draw its polygons into a"):
        find_set(tmp_path, "seg")


@pytest.mark.parametrize("text", [json.dumps(COCO), VIA, '{"shapes": [{"label": "cat"}]}', json.dumps(PANOPTIC)])
def test_boxes_and_segments_are_no_labels_of_images(tmp_path: Path, text: str) -> None:
    draw_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(SetNotFound) as caught:
        find_set(tmp_path, "cls")
    assert "labels in a document" not in str(caught.value)


def test_a_table_of_boxes_is_no_table_of_labels(tmp_path: Path) -> None:
    draw_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "boxes.csv").write_text("id,x,y,w,h\na.jpg,1,2,10,8\n")
    with pytest.raises(SetNotFound) as caught:
        find_set(tmp_path, "cls")
    assert "labels in a table" not in str(caught.value)


def test_polygons_of_labelme_are_no_boxes(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text(LABELME)
    with pytest.raises(SetNotFound, match=r"a\.xml: holds LabelMe's polygons and no box; use VOC's form"):
        find_set(tmp_path, "det")


def test_panoptic_masks_are_no_masks_of_classes(tmp_path: Path) -> None:
    draw_image(tmp_path / "images" / "train" / "a.jpg")
    draw_mask(tmp_path / "annotations" / "panoptic_train" / "a.png")
    write_json(tmp_path / "annotations" / "panoptic_train.json", PANOPTIC)
    with pytest.raises(SetNotFound, match=r"panoptic_train.json is not read, it holds the classes of COCO's panoptic"):
        find_set(tmp_path, "seg")


def test_masks_of_classes_that_are_called_panoptic_are_read(tmp_path: Path) -> None:
    draw_image(tmp_path / "images" / "a.jpg")
    mask = draw_mask(tmp_path / "panoptic_stuff" / "a.png")
    assert find_set(tmp_path, "seg").pairs[0][1] == mask
