"""What lies beside a set and is no part of it: previews, other JSON files, splits whose boxes are kept back."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.catalog import load_set
from data.errors import DataError, SetNotFound
from tests.data.builders import annotation, coco, draw_image, draw_mask, seg_set, write_json

BOX = [10, 8, 12, 6]


def det_split(root: Path, split: str, boxes: bool = True) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw_image(root / split / "images" / name)
    found = [annotation(1, 1, BOX), annotation(2, 1, BOX)] if boxes else []
    write_json(root / split / "annotations.json", coco(["a.jpg", "b.jpg"], found, {1: "cat"}))


@pytest.mark.parametrize("beside", ["annotated", "boxes", "bbox_vis", "debug", "gt_vis"])
def test_previews_beside_the_images_of_a_coco_file_are_not_read(tmp_path: Path, beside: str) -> None:
    det_split(tmp_path, "val")
    for name in ("a.jpg", "b.jpg"):
        draw_image(tmp_path / "val" / beside / name)
    assert {r.image.parent.name for r in load_set(tmp_path, "det", "val").records} == {"images"}


@pytest.mark.parametrize("below", ["vis", "masks", "drawn"])
@pytest.mark.parametrize("images", ["images", "val2017"])
def test_pictures_below_the_boxes_are_not_taken_for_the_photographs(tmp_path: Path, below: str, images: str) -> None:
    for name in ("a", "b"):
        draw_image(tmp_path / images / f"{name}.jpg")
        draw_mask(tmp_path / "annotations" / below / f"{name}.png")
    document = coco(["a.jpg", "b.jpg"], [annotation(1, 1, BOX), annotation(2, 1, BOX)], {1: "cat"})
    write_json(tmp_path / "annotations" / "instances_val.json", document)
    assert [r.image for r in load_set(tmp_path, "det").records] == [tmp_path / images / f"{n}.jpg" for n in "ab"]


@pytest.mark.parametrize("beside", ["annotations", "annotations/masks"])
def test_masks_with_the_listed_names_are_not_taken_for_the_photographs(tmp_path: Path, beside: str) -> None:
    draw_image(tmp_path / "images" / "a.png")
    draw_mask(tmp_path / beside / "a.png")
    write_json(tmp_path / "annotations" / "det.json", coco(["a.png"], [annotation(1, 1, BOX)], {1: "cat"}))
    assert [r.image for r in load_set(tmp_path, "det").records] == [tmp_path / "images" / "a.png"]


@pytest.mark.parametrize("beside", ["annotated", "annotations", "gt_masks"])
def test_previews_beside_the_images_of_yolo_files_are_not_read(tmp_path: Path, beside: str) -> None:
    for name in ("a", "b"):
        draw_image(tmp_path / "val" / "images" / f"{name}.png")
        draw_image(tmp_path / "val" / beside / f"{name}.png")
        (tmp_path / "val" / "labels").mkdir(exist_ok=True)
        (tmp_path / "val" / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    assert {r.image.parent.name for r in load_set(tmp_path, "det", "val").records} == {"images"}


@pytest.mark.parametrize("beside", ["annotated", "blend", "color", "depth", "edges", "SegmentationObject"])
def test_previews_beside_images_and_masks_are_not_read(tmp_path: Path, beside: str) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    records = load_set(tmp_path, "seg", "val").records
    for record in records:
        draw_image(tmp_path / "val" / beside / f"{record.image.stem}.png")
    again = load_set(tmp_path, "seg", "val").records
    assert [(r.image, r.mask) for r in again] == [(r.image, r.mask) for r in records]


@pytest.mark.parametrize(
    ("name", "content"),
    [("class_to_idx.json", {"tench": 0}), ("sample_submission.json", []), ("info.json", {"images": 3})],
)
def test_another_json_in_a_better_split_hides_no_set(tmp_path: Path, name: str, content: object) -> None:
    det_split(tmp_path / "coco", "val")
    write_json(tmp_path / "other" / "test" / name, content)
    draw_image(tmp_path / "other" / "test" / "images" / "0.jpg")
    found = load_set(tmp_path, "det")
    assert (found.split, len(found.records)) == ("val", 2)


def test_another_json_alone_is_no_broken_set(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "tench" / "1.jpg")
    write_json(tmp_path / "val" / "class_index.json", {"tench": 0})
    with pytest.raises(SetNotFound):
        load_set(tmp_path, "det")


def test_a_split_whose_boxes_are_kept_back_does_not_hide_the_next(tmp_path: Path) -> None:
    det_split(tmp_path, "test", boxes=False)
    with pytest.raises(DataError, match="no usable annotation"):
        load_set(tmp_path, "det")
    det_split(tmp_path, "train")
    with pytest.raises(DataError, match="no usable annotation"):  # not scored on training images instead
        load_set(tmp_path, "det")
    det_split(tmp_path, "val")
    found = load_set(tmp_path, "det")
    assert (found.split, len(found.records)) == ("val", 2)
    assert any(note.startswith("passed over, without any box: ") for note in found.notes)


def test_images_of_two_formats_with_one_stem_are_images(tmp_path: Path) -> None:
    for path in ("tench/1.jpg", "tench/1.png", "church/1.jpg"):
        draw_image(tmp_path / "val" / path)
    assert len(load_set(tmp_path, "cls", "val").records) == 3


def test_an_image_and_its_mask_are_no_class(tmp_path: Path) -> None:
    for name in ("tench", "church"):
        draw_image(tmp_path / "val" / name / "1.jpg")
    draw_image(tmp_path / "val" / "pairs" / "1.jpg")
    draw_mask(tmp_path / "val" / "pairs" / "1.png")
    assert load_set(tmp_path, "cls", "val").classes == ("tench", "church")


@pytest.mark.parametrize("bbox", [{}, {"bbox": []}, {"bbox": None}])
def test_the_box_of_polygons_is_the_one_around_them(tmp_path: Path, bbox: dict[str, object]) -> None:
    polygons = [[4, 5, 10, 5, 10, 9], [2.5, 6, 3, 7, 3, 6]]
    one = {"image_id": 1, "category_id": 1, "segmentation": polygons, "area": 20, **bbox}
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    write_json(tmp_path / "val" / "annotations.json", coco(["a.jpg"], [one], {1: "cat"}))
    assert load_set(tmp_path, "det", "val").records[0].boxes.tolist() == [[2.5, 5, 10, 9]]


@pytest.mark.parametrize("polygons", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, "x"]], {"counts": [1], "size": [2, 2]}])
def test_what_is_no_polygon_gives_no_box(tmp_path: Path, polygons: object) -> None:
    one = {"image_id": 1, "category_id": 1, "segmentation": polygons}
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    write_json(tmp_path / "val" / "annotations.json", coco(["a.jpg"], [one], {1: "cat"}))
    with pytest.raises(DataError, match="none of its 1 annotations has a bbox"):
        load_set(tmp_path, "det", "val")
