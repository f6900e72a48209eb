"""COCO files as tools write them: names of files, ids, units; and what is reported where they do not fit."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from data.catalog import load_set
from data.errors import DataError
from data.types import TaskSet
from tests.data.builders import annotation, coco, draw_image, write_json

BOX, CORNERS = [10, 8, 12, 6], [10.0, 8.0, 22.0, 14.0]


def load(root: Path, names: list[str], document: dict[str, Any]) -> TaskSet:
    for name in names:
        draw_image(root / "val" / "images" / name)
    write_json(root / "val" / "annotations.json", document)
    return load_set(root, "det", "val")


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        ("my%20image%20{}.jpg", "my image {}.jpg"),
        ("100%{}.jpg", "100%{}.jpg"),
        ("a%20{}.jpg", "a%20{}.jpg"),
        ("https://bucket.s3.amazonaws.com/x/{}.jpg?X-Amz-Sig=a/b", "{}.jpg"),
        ("/data/local-files/?d=images%2F{}.jpg", "{}.jpg"),  # Label Studio
        ("/data/upload/1/0a1b2c3d-{}.jpg", "{}.jpg"),
        ("images\\{}.JPG", "{}.jpg"),
        (unicodedata.normalize("NFC", "Größe é {}.jpg"), unicodedata.normalize("NFD", "Größe é {}.jpg")),
        (unicodedata.normalize("NFD", "Größe é {}.jpg"), unicodedata.normalize("NFC", "Größe é {}.jpg")),
        ("what#{}?.jpg", "what#{}?.jpg"),
    ],
)
def test_names_of_files(tmp_path: Path, listed: str, on_disk: str) -> None:
    boxes = [annotation(1, 1, BOX), annotation(2, 2, BOX)]
    document = coco([listed.format(k) for k in (1, 2)], boxes, {1: "cat", 2: "dog"})
    found = load(tmp_path, [on_disk.format(k) for k in (1, 2)], document)
    assert [record.image.name for record in found.records] == [on_disk.format(k) for k in (1, 2)]
    assert [record.labels.tolist() for record in found.records] == [[0], [1]]
    assert found.notes == ()


def test_a_name_in_other_capitals_belongs_to_its_own_file(tmp_path: Path) -> None:
    document = coco(["A.jpg", "a.jpg"], [annotation(1, 1, BOX), annotation(2, 2, BOX)], {1: "cat", 2: "dog"})
    found = load(tmp_path, ["a.jpg", "A.jpg"], document)
    assert {r.image.name: r.labels.tolist() for r in found.records} == {"A.jpg": [0], "a.jpg": [1]}


def test_all_images_of_two_folders_that_share_names(tmp_path: Path) -> None:
    names = ["cam1/1.jpg", "cam1/2.jpg", "cam1/3.jpg", "cam2/1.jpg", "cam2/2.jpg"]
    boxes = [annotation(k + 1, 1, [k, 1, 5, 5]) for k in range(5)]
    found = load(tmp_path, names, coco(names, boxes, {1: "cat"}))
    left = {f"{r.image.parent.name}/{r.image.name}": r.boxes[0, 0].item() for r in found.records}
    assert left == {name: float(k) for k, name in enumerate(names)}


def two_splits(root: Path, images: str, listed: str) -> None:
    """Write one file for both splits, whose images are called the same; the boxes of test begin at 11, 12."""
    for split in ("train", "test"):
        for number in (1, 2):
            draw_image(root / images.format(split) / f"{number}.jpg")
    names = [f"{listed.format(split)}/{number}.jpg" for split in ("train", "test") for number in (1, 2)]
    boxes = [annotation(k + 1, 1, [x, 1, 5, 5]) for k, x in enumerate((1, 2, 11, 12))]
    write_json(root / "annotations.json", coco(names, boxes, {1: "cat"}))


def left_sides(found: TaskSet) -> list[list[float]]:
    return [record.boxes[:, 0].tolist() for record in found.records]


@pytest.mark.parametrize("images", ["{}", "{}/images"])
@pytest.mark.parametrize("listed", ["{}", "{}/images", "/home/me/{}", "data\\{}"])
def test_one_file_for_all_splits_with_the_same_names(tmp_path: Path, images: str, listed: str) -> None:
    two_splits(tmp_path, images, listed)
    for split, expected in (("train", [[1], [2]]), ("test", [[11], [12]]), (None, [[11], [12]])):
        found = load_set(tmp_path, "det", split)
        assert left_sides(found) == expected
        assert found.notes == ()


def test_one_file_for_all_splits_below_the_folder_of_one(tmp_path: Path) -> None:
    two_splits(tmp_path, "{}", "{}")
    (tmp_path / "annotations.json").rename(tmp_path / "test" / "annotations.json")
    found = load_set(tmp_path / "test", "det")
    assert left_sides(found) == [[11], [12]]
    assert "2 listed images that are not on disk (skipped): 1.jpg, 2.jpg" in found.notes


def test_boxes_of_train_are_never_laid_on_images_of_test(tmp_path: Path) -> None:
    for split in ("train", "test"):
        draw_image(tmp_path / split / "1.jpg")
    write_json(tmp_path / "annotations.json", coco(["train/1.jpg"], [annotation(1, 1, BOX)], {1: "cat"}))
    assert load_set(tmp_path, "det", "train").records[0].image == tmp_path / "train" / "1.jpg"
    with pytest.raises(DataError, match=r"annotations.json lists train/1.jpg, but test/ holds 1.jpg"):
        load_set(tmp_path, "det", "test")


def test_a_split_that_was_renamed_keeps_its_boxes(tmp_path: Path) -> None:
    draw_image(tmp_path / "coco" / "test" / "1.jpg")
    draw_image(tmp_path / "mini_voc_seg" / "val" / "1.jpg")
    boxes = [annotation(1, 1, [7, 1, 5, 5])]
    write_json(tmp_path / "coco" / "test.json", coco(["val/1.jpg"], boxes, {1: "cat"}))
    assert left_sides(load_set(tmp_path, "det")) == [[7]]


def test_of_two_listed_names_that_mean_one_file_the_closer_counts(tmp_path: Path) -> None:
    boxes = [annotation(k + 1, 1, [k + 1, 1, 5, 5]) for k in range(4)]
    found = load(tmp_path, ["a/1.jpg", "2.jpg"], coco(["b/1.jpg", "a/1.jpg", "2.png", "2.jpg"], boxes, {1: "cat"}))
    assert left_sides(found) == [[2], [4]]
    assert "2 listed images that are not on disk (skipped): 1.jpg, 2.png" in found.notes


def test_names_without_folder_that_fit_two_files_are_not_guessed(tmp_path: Path) -> None:
    names = ["cam1/1.jpg", "cam2/1.jpg", "cam1/2.jpg"]
    boxes = [annotation(k + 1, 1, BOX) for k in range(3)]
    found = load(tmp_path, names, coco(["1.jpg", "1.jpg", "2.jpg"], boxes, {1: "cat"}))
    assert [record.image.name for record in found.records] == ["2.jpg"]
    assert any("2 listed names that several files in different folders have (skipped): 1.jpg" in n for n in found.notes)


def test_a_file_whose_names_do_not_fit_is_named_with_one_of_each_side(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations.json lists x1.jpg, but val/images/ holds y1.jpg") as caught:
        load(tmp_path, ["y1.jpg", "y2.jpg"], coco(["x1.jpg", "x2.jpg"], [annotation(1, 1, BOX)], {1: "cat"}))
    assert type(caught.value) is DataError  # it is there and broken, not missing


@pytest.mark.parametrize(
    ("image_ids", "image_id", "category_id"),
    [([1, 2], 1.0, 2.0), (["000001", "000002"], 1, 2), (["1", "2"], 1, "2"), ([1.0, 2.0], "1", "02")],
)
def test_ids_written_in_another_way(tmp_path: Path, image_ids: list[Any], image_id: Any, category_id: Any) -> None:
    document = coco(["a.jpg", "b.jpg"], [annotation(image_id, category_id, BOX)], {1: "cat", 2: "dog"})
    for entry, number in zip(document["images"], image_ids):
        entry["id"] = number
    found = load(tmp_path, ["a.jpg", "b.jpg"], document)
    assert found.classes == ("dog",)
    assert [record.boxes.tolist() for record in found.records] == [[CORNERS], []]


def test_ids_that_differ_in_zeros_only_stay_two(tmp_path: Path) -> None:
    document = coco(["a.jpg", "b.jpg"], [annotation("01", 1, BOX)], {1: "cat"})
    document["images"][0]["id"], document["images"][1]["id"] = "1", "01"
    assert [len(r.labels) for r in load(tmp_path, ["a.jpg", "b.jpg"], document).records] == [0, 1]


SOME = ([10, 8, 12, 6], [2, 3, 8, 20], [20, 10, 9, 13])


def read(root: Path, boxes: list[list[Any]], **more: Any) -> tuple[list[list[float]], TaskSet]:
    found = load(root, ["a.jpg"], coco(["a.jpg"], [annotation(1, 1, box, **more) for box in boxes], {1: "cat"}))
    return found.records[0].boxes.tolist(), found


def test_boxes_as_text(tmp_path: Path) -> None:
    assert read(tmp_path, [["10", "8", "12.0", "6"]])[0] == [CORNERS]


def test_negative_sizes_are_read_from_the_opposite_corner(tmp_path: Path) -> None:
    corners, found = read(tmp_path, [[22, 14, -12, -6]])
    assert corners == [CORNERS]
    assert "1 boxes of negative width or height (read from the opposite corner): id 1" in found.notes


@pytest.mark.parametrize("form", ["sizes", "corners", "centres"])
@pytest.mark.parametrize("fractions", [False, True])
def test_units(tmp_path: Path, form: str, fractions: bool) -> None:
    expected = [[x, y, x + w, y + h] for x, y, w, h in SOME]
    raw: list[list[float]] = []
    for x, y, w, h in SOME:
        centre = [x + w / 2, y + h / 2, w, h]
        raw.append({"sizes": [x, y, w, h], "corners": [x, y, x + w, y + h], "centres": centre}[form])
    if fractions:
        raw = [[value / side for value, side in zip(box, (32, 24) * 2)] for box in raw]
    corners, found = read(tmp_path, raw)
    assert [[round(value, 3) for value in box] for box in corners] == expected
    notes = [note for note in found.notes if "boxes are read as" in note]
    assert len(notes) == (form != "sizes" or fractions)


def test_corners_are_recognised_by_their_areas_where_they_fit_the_image_either_way(tmp_path: Path) -> None:
    assert read(tmp_path, [[2, 2, 10, 8]])[0] == [[2, 2, 12, 10]]
    assert read(tmp_path, [[2, 2, 10, 8]], area=48)[0] == [[2, 2, 10, 8]]


def test_the_true_reason_comes_with_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable annotation .*1 annotations whose box is not four .*: id 1"):
        read(tmp_path, [["ten", 8, 12, 6]])
    with pytest.raises(DataError, match=r"1 annotations whose category is not listed \(dropped\): id 1"):
        load(tmp_path, ["a.jpg"], coco(["a.jpg"], [annotation(1, 9, BOX)], {1: "cat"}))


def test_names_of_one_set_are_as_they_are_and_two_sets_match_tolerantly(tmp_path: Path) -> None:
    boxes = [annotation(1, k, BOX) for k in (1, 2, 3, 4)]
    names = {1: "a", 2: "A", 3: "traffic-light", 4: unicodedata.normalize("NFD", "Ampel für")}
    found = load(tmp_path, ["a.jpg"], coco(["a.jpg"], boxes, names))
    assert found.classes == ("a", "A", "traffic-light", unicodedata.normalize("NFC", "Ampel für"))
    assert found.records[0].labels.tolist() == [0, 1, 2, 3]
    other = load_set(tmp_path, "det", "val", ("A", "Traffic Light", "a", "AMPEL FÜR"))
    assert other.records[0].labels.tolist() == [2, 0, 1, 3]
    assert other.unknown == ()


def test_a_second_set_is_mentioned(tmp_path: Path) -> None:
    for name in ("first", "second"):
        document = coco(["1.jpg"], [annotation(1, 1, BOX)], {1: "cat"})
        draw_image(tmp_path / name / "val" / "images" / "1.jpg")
        write_json(tmp_path / name / "val" / "annotations.json", document)
    found = load_set(tmp_path, "det", "val")
    assert len(found.records) == 1
    assert any("another set, not used" in note and "second/val/annotations.json" in note for note in found.notes)
