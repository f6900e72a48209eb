from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.catalog import load_set
from data.errors import DataError
from data.layouts.coco import load_document
from data.types import TaskSet
from tests.data.builders import SIZE, annotation, coco, draw_image, write_json

NAMES = ("a.jpg", "b.jpg", "c.jpg")


def load(root: Path, document: dict[str, Any], classes: tuple[str, ...] | None = None) -> TaskSet:
    """Read three drawn images (32 x 24) with this document as their validation annotations."""
    for name in NAMES:
        if not (root / "val" / "images" / name).exists():
            draw_image(root / "val" / "images" / name)
    write_json(root / "val" / "annotations.json", document)
    return load_set(root, "det", "val", classes)


def boxes_of(found: TaskSet, position: int = 0) -> list[list[float]]:
    return found.records[position].boxes.tolist()


def note(found: TaskSet, part: str) -> str:
    """Return the one note that contains `part`."""
    (line,) = [line for line in found.notes if part in line]
    return line


def test_classes_are_the_categories_in_use_ordered_by_id(tmp_path: Path) -> None:
    categories = {90: "toothbrush", 17: "cat", 3: "car", 1: "person", 5: "airplane"}
    boxes = [
        annotation(1, 17, [1, 2, 3, 4], area=7.5),
        annotation(2, 3, [0, 0, 32, 24]),
        annotation(9, 90, [1, 1, 2, 2]),  # its image is not on disk
        annotation(1, 5, [1, 1, 2, 2], iscrowd=1),  # nothing but a crowd
        annotation(2, 1, [1, 1, 0, 2]),  # not usable
    ]
    document = coco(NAMES, boxes, categories)
    document["images"].append({"id": 9, "file_name": "gone.jpg", "width": 32, "height": 24})
    found = load(tmp_path, document)
    assert found.classes == ("car", "cat")
    assert found.unknown == ("airplane",)
    assert [record.image.name for record in found.records] == list(NAMES)
    first, second, third = found.records
    assert first.labels.tolist() == [1, 2]
    assert first.crowd.tolist() == [False, True]
    assert first.area.tolist() == [7.5, 4.0]
    assert second.labels.tolist() == [0]
    assert second.area.tolist() == [768.0]
    assert third.boxes.shape == (0, 4)
    assert (third.boxes.dtype, third.labels.dtype, third.crowd.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )
    assert note(found, "not on disk") == "1 listed images that are not on disk (skipped): gone.jpg"
    assert "id 5" in note(found, "without width or height")


def test_category_ids_of_another_split_are_mapped_by_name(tmp_path: Path) -> None:
    document = coco(NAMES, [annotation(1, 1, [1, 1, 4, 4]), annotation(2, 2, [1, 1, 4, 4])],
                    {1: "Dining_Table", 2: "bird"})  # fmt: skip
    document["annotations"].append(annotation(3, 7, [2, 2, 4, 4]))
    document["categories"] += [{"id": 7, "name": "zebra"}, {"id": 8, "name": "unused"}]
    found = load(tmp_path, document, classes=("bird", "dining table"))
    assert found.classes == ("bird", "dining table")
    assert [record.labels.tolist() for record in found.records] == [[1], [0], [2]]
    assert found.unknown == ("zebra",)


def test_category_name_that_is_an_object(tmp_path: Path) -> None:
    nested = {"supercategory": "animal", "id": 17, "name": "cat"}
    found = load(tmp_path, coco(NAMES, [annotation(1, 17, [1, 1, 4, 4])], {17: nested}))
    assert found.classes == ("cat",)


def test_boxes_are_checked_and_clipped(tmp_path: Path) -> None:
    width, height = SIZE
    boxes = [
        annotation(1, 1, [-5, -3, 10, 10]),  # sticks out: 5 x 7 are left
        annotation(1, 1, [30, 20, 10.0, 10]),
        annotation(1, 1, [width, 0, 5, 5]),  # begins where the image ends
        annotation(1, 1, [2, 2, -4, 4]),
        annotation(1, 1, [2, math.nan, 4, 4]),
        annotation(1, 1, [2, 2, math.inf, 4]),
        annotation(1, 1, [2, 2, 4]),
        annotation(1, 1, ["2", 2, 4, 4]),
        annotation(1, 1, [10**400, 2, 4, 4]),
        annotation(1, 1, [0, 0, width + 0.4, height]),  # a rounding error, not worth a note
    ]
    found = load(tmp_path, coco(NAMES, boxes, {1: "cat"}))
    assert boxes_of(found) == [[0, 0, 5, 7], [30, 20, 32, 24], [0, 0, width, height]]
    assert found.records[0].area.tolist() == [35.0, 8.0, 768.0]
    assert note(found, "outside their image") == "1 boxes outside their image (dropped): id 3"
    assert note(found, "without width or height").startswith("1 ")
    assert note(found, "finite numbers").startswith("5 annotations")
    assert note(found, "stick out") == "2 boxes that stick out of their image (clipped): id 1, id 2"


def test_odd_annotations_are_noted(tmp_path: Path) -> None:
    boxes = [
        annotation(1, 1, [1, 1, 4, 4], id=5),
        annotation(1, 1, [2, 2, 4, 4], id=5),
        annotation(1, 99, [2, 2, 4, 4], id=6),
        annotation(77, 1, [2, 2, 4, 4], id=7),
        annotation("1", 1, [3, 3, 4, 4], id=8),
    ]
    document = coco(NAMES[:2], boxes, {1: "cat"})
    found = load(tmp_path, document)
    assert [box[0] for box in boxes_of(found)] == [1, 2, 3]
    assert len(found.records) == 2
    assert note(found, "more than once") == "1 annotation ids used more than once (all kept): id 5"
    assert "id 6" in note(found, "category is not listed (dropped)")
    assert "id 7" in note(found, "images that are not listed")
    assert note(found, "does not list") == "1 image files that the annotation file does not list (not used): c.jpg"


@pytest.mark.parametrize("form", ["val2017/{}.jpg", "{}", "C:\\data\\val\\{}.jpg", "{}.png", "/data/{}.JPG"])
def test_file_names_with_folders_or_another_ending(tmp_path: Path, form: str) -> None:
    names = [form.format(Path(name).stem) for name in NAMES]
    found = load(tmp_path, coco(names, [annotation(2, 1, [1, 1, 4, 4])], {1: "cat"}))
    assert [record.image.name for record in found.records] == list(NAMES)
    assert found.records[1].labels.tolist() == [0]


def test_equal_names_in_two_folders_are_distinguished_by_the_folder(tmp_path: Path) -> None:
    for folder in ("north", "south"):
        draw_image(tmp_path / "val" / "images" / folder / "0.jpg")
        draw_image(tmp_path / "val" / "images" / folder / f"{folder}.jpg")
    names = ["south/0.jpg", "north/0.jpg", "north/north.jpg", "south/south.jpg"]
    document = coco(names, [annotation(1, 1, [1, 1, 4, 4]), annotation(3, 1, [1, 1, 4, 4])], {1: "cat"})
    write_json(tmp_path / "val" / "annotations.json", document)
    found = load_set(tmp_path, "det", "val")
    marked = {f"{record.image.parent.name}/{record.image.name}" for record in found.records if len(record.labels)}
    assert marked == {"south/0.jpg", "north/north.jpg"}
    assert len(found.records) == 4


def test_first_of_two_images_with_one_id_counts(tmp_path: Path) -> None:
    document = coco(NAMES, [annotation(1, 1, [2, 2, 4, 4])], {1: "cat"})
    document["images"].append({"id": 1, "file_name": "c.jpg", "width": 320, "height": 240})
    found = load(tmp_path, document)
    assert boxes_of(found) == [[2, 2, 6, 6]]
    assert note(found, "image ids") == "1 image ids listed more than once (the first counts): 1"


def test_one_file_listed_under_two_ids_is_one_record(tmp_path: Path) -> None:
    boxes = [annotation(1, 1, [1, 1, 4, 4]), annotation(4, 1, [2, 2, 4, 4])]
    found = load(tmp_path, coco((*NAMES, "a.jpg"), boxes, {1: "cat"}))
    assert len(found.records) == 3
    assert len(boxes_of(found)) == 2


def test_boxes_follow_the_size_of_the_file(tmp_path: Path) -> None:
    document = coco(NAMES, [annotation(1, 1, [20, 10, 20, 20], area=400)], {1: "cat"}, size=(64, 48))
    found = load(tmp_path, document)
    assert boxes_of(found) == [[10, 5, 20, 15]]
    assert found.records[0].area.tolist() == [100.0]
    assert "a.jpg" in note(found, "boxes scaled")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_on_the_turned_image_are_turned_back(tmp_path: Path, orientation: int) -> None:
    # Let PIL itself say where a marked rectangle of the stored image is shown.
    from PIL import ImageOps

    stored = Image.new("L", SIZE)
    stored.paste(255, (3, 4, 13, 9))
    exif = Image.Exif()
    exif[274] = orientation
    stored.getexif()[274] = orientation
    left, top, right, bottom = ImageOps.exif_transpose(stored).getbbox()
    path = tmp_path / "val" / "images" / "a.jpg"
    path.parent.mkdir(parents=True)
    stored.save(path, exif=exif)
    box = annotation(1, 1, [left, top, right - left, bottom - top])
    found = load(tmp_path, coco(NAMES, [box], {1: "cat"}, size=(SIZE[1], SIZE[0])))
    assert boxes_of(found) == [[3, 4, 13, 9]]
    assert "EXIF" in note(found, "a.jpg")


def test_width_and_height_exchanged_leaves_boxes_alone(tmp_path: Path) -> None:
    document = coco(NAMES, [annotation(1, 1, [25, 1, 5, 5])], {1: "cat"}, size=(SIZE[1], SIZE[0]))
    found = load(tmp_path, document)
    assert boxes_of(found) == [[25, 1, 30, 6]]
    assert "a.jpg" in note(found, "exchanged")


def test_no_usable_annotation_names_file_and_classes(tmp_path: Path) -> None:
    for boxes in ([], [annotation(1, 1, [1, 1, 0, 0])]):
        with pytest.raises(DataError, match=r"annotations.json: no usable annotation .* classes cat, dog"):
            load(tmp_path, coco(NAMES, boxes, {1: "cat", 2: "dog"}))
    crowd = [annotation(1, 1, [1, 1, 4, 4], iscrowd=1)]
    with pytest.raises(DataError, match="all 1 annotations are crowds"):
        load(tmp_path, coco(NAMES, crowd, {1: "cat"}))
    assert load(tmp_path, coco(NAMES, crowd, {1: "cat"}), ("cat",)).records[0].crowd.tolist() == [True]


GOOD = coco(["a.jpg"], [annotation(1, 1, [1, 1, 2, 2])], {1: "cat"})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "holds a JSON list, not an object"),
        (json.dumps({key: GOOD[key] for key in ("images", "annotations")}), "has no 'categories'"),
        (json.dumps({**GOOD, "annotations": {}}), "'annotations' is no list"),
        (json.dumps({**GOOD, "images": [{"id": 1}]}), r"images\[0\] has no file_name"),
        (json.dumps({**GOOD, "images": [7]}), r"images\[0\] has no id, file_name"),
        (json.dumps({**GOOD, "categories": [{"name": "cat"}]}), r"categories\[0\] has no id"),
        (json.dumps({**GOOD, "annotations": [{"id": 1}]}), r"annotations\[0\] has no image_id"),
        (json.dumps({**GOOD, "annotations": [{"image_id": 1, "caption": "x"}]}), "none of its 1 annotations"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "val" / "annotations.json"
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=sentence) as caught:
        load_document(path)
    assert str(caught.value).startswith(f"{path}: ")
    # The same sentence reaches the person who asked for the set.
    with pytest.raises(DataError, match=sentence):
        load_set(tmp_path, "det", "val")


def test_an_annotated_image_that_is_broken_is_named(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "val" / "images" / "a.jpg")
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.jpg: cannot be decoded"):
        load(tmp_path, GOOD)


def test_ids_that_are_long_numbers_are_text(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "a.jpg")
    document = coco(["a.jpg"], [annotation(1, "1" * 5000, [1, 1, 5, 5])], {})
    document["categories"] = [{"id": "1" * 5000, "name": "cat"}]
    write_json(tmp_path / "val" / "annotations.json", document)
    assert load_set(tmp_path, "det", "val").classes == ("cat",)


def test_a_size_that_is_none_is_not_scaled_by(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "a.jpg")
    document = coco(["a.jpg"], [annotation(1, 1, [0, 0, 5, 5], area=1e300)], {1: "cat"}, (5e-324, 24))  # type: ignore[arg-type]
    write_json(tmp_path / "val" / "annotations.json", document)
    (record,) = load_set(tmp_path, "det", "val").records
    assert record.boxes.tolist() == [[0, 0, 5, 5]]
    assert record.area.tolist() == [25]
