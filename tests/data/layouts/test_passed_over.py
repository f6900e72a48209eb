"""Exports of usual tools that are not read are named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import SetNotFound
from data.layouts.search import find_set
from data.types import Task
from tests.data.builders import annotation, coco, draw_image, write_json

TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,32,24,cat,1,2,11,10\n"
CVAT = "<annotations><image name='a.jpg'><box label='cat' xtl='1' ytl='2' xbr='11' ybr='10'/></image></annotations>"


@pytest.mark.parametrize(
    ("task", "name", "text", "sentence"),
    [
        ("det", "_annotations.csv", TABLE, "boxes in a table: export COCO JSON, YOLO text files or VOC XML files"),
        ("det", "annotations.xml", CVAT, "boxes in CVAT's own form: export COCO JSON"),
        ("cls", "train.csv", "image_id,label\na.jpg,cat\n", "labels in a table: put the images of each class into a"),
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
