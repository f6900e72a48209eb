"""Detection sets with one file of boxes per image, as exported by usual tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.catalog import load_set
from data.errors import DataError
from data.types import TaskSet
from tests.data.builders import draw_image, draw_mask

# 8 x 6 pixels around (16, 12) of 32 x 24, as YOLO and VOC write it, and the same as polygon
YOLO_BOX, POLYGON = "0.5 0.5 0.25 0.25", "0.375 0.375 0.625 0.375 0.625 0.625 0.375 0.625"
BOX = [12.0, 9.0, 20.0, 15.0]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def xml(*objects: tuple[str, list[float]], size: tuple[int, int] = (32, 24)) -> str:
    sides = ("xmin", "ymin", "xmax", "ymax")
    found = "".join(
        f"<object><name>{name}</name><bndbox>{''.join(f'<{s}>{v}</{s}>' for s, v in zip(sides, box))}</bndbox></object>"
        for name, box in objects
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{found}</annotation>"


def boxes(found: TaskSet) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> class and corners of each box."""
    names = (*found.classes, *found.unknown)
    return {
        record.image.name: [(names[k], box) for k, box in zip(record.labels.tolist(), record.boxes.tolist())]
        for record in found.records
    }


@pytest.mark.parametrize(
    ("images", "labels", "names", "listed"),
    [
        ("{split}/images", "{split}/labels", "data.yaml", "names: ['cat', 'dog']\nnc: 2\n"),  # Roboflow
        ("images/{split}", "labels/{split}", "dataset.yaml", "names:\n  0: cat\n  1: dog\n"),  # Ultralytics
        ("images/{split}", "labels/{split}", "coco8.yaml", "path: .\nnc: 2\nnames:\n- cat\n- dog\n"),
        ("images/{split}", "labels/{split}", "Data.YAML", "names: [cat, dog]\n"),
        ("images/{split}", "labels/{split}", "classes.txt", "cat\ndog\n"),  # Label Studio
        ("{split}", "{split}", "classes.txt", "cat\ndog\n"),  # LabelImg: beside the images
        ("obj_{split}_data", "obj_{split}_data", "obj.names", "cat\ndog\n"),  # CVAT, Darknet
    ],
)
def test_yolo(tmp_path: Path, images: str, labels: str, names: str, listed: str) -> None:
    root = tmp_path / "export"
    for split in ("train", "valid"):
        for number, line in enumerate((f"1 {YOLO_BOX}\n", f"0 {POLYGON}\n\n1 {YOLO_BOX} 0.9\n", "")):
            draw_image(root / images.format(split=split) / f"{split} {number}.jpg")
            write(root / labels.format(split=split) / f"{split} {number}.txt", line)
    draw_image(root / images.format(split="valid") / "bare.jpg")
    write(root / names, listed)
    found = load_set(tmp_path, "det", "val")
    assert found.classes == ("cat", "dog")
    assert boxes(found) == {
        "bare.jpg": [], "valid 0.jpg": [("dog", BOX)], "valid 1.jpg": [("cat", BOX), ("dog", BOX)], "valid 2.jpg": [],
    }  # fmt: skip
    assert any("1 images without a text file (no objects): bare.jpg" in note for note in found.notes)
    assert boxes(load_set(tmp_path, "det", "val", ("Dog", "cat")))["valid 0.jpg"] == [("Dog", BOX)]
    assert len(load_set(root, "det", "train").records) == 3


def test_yolo_split_by_lists(tmp_path: Path) -> None:
    for number in range(4):
        draw_image(tmp_path / "obj_train_data" / f"{number}.png")
        write(tmp_path / "obj_train_data" / f"{number}.txt", f"0 {YOLO_BOX}")
    write(tmp_path / "obj.names", "cat\n")
    assert len(load_set(tmp_path, "det", "train").records) == 4
    moved = tmp_path / "obj_train_data"
    moved = moved.rename(tmp_path / "frames")
    write(tmp_path / "train.txt", "frames/0.png\nframes/1.png\nframes/2.png\n")
    write(tmp_path / "valid.txt", "data/frames/3.png\n")
    assert boxes(load_set(tmp_path, "det", "val")) == {"3.png": [("cat", BOX)]}
    assert len(load_set(tmp_path, "det", "train").records) == 3


def test_yolo_without_names_reports_it_and_names_missing_ones(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    write(tmp_path / "val" / "labels" / "a.txt", f"7 {YOLO_BOX}")
    found = load_set(tmp_path, "det", "val")
    assert found.classes == ("7",)
    assert any("no file names the classes" in note for note in found.notes)
    write(tmp_path / "data.yaml", "nc: 8")
    write(tmp_path / "hyp.yaml", "epochs: 7")
    assert any("no file names the classes" in note for note in load_set(tmp_path, "det", "val").notes)
    write(tmp_path / "data.yaml", "names: [cat]")
    found = load_set(tmp_path, "det", "val")
    assert boxes(found) == {"a.jpg": [("7", BOX)]}
    assert any("data.yaml names no class 7, which label files use: name it there" in note for note in found.notes)


def test_yolo_without_names_counts_up_in_the_order_of_the_model(tmp_path: Path) -> None:
    draw_image(tmp_path / "test" / "images" / "a.jpg")
    write(tmp_path / "test" / "labels" / "a.txt", f"1 {YOLO_BOX}\n0 {YOLO_BOX}\n")
    found = load_set(tmp_path, "det", None, ("dog", "cat"))
    assert boxes(found) == {"a.jpg": [("cat", BOX), ("dog", BOX)]}
    assert any(note.endswith("0 to 1 are read as the classes in their order: dog, cat") for note in found.notes)
    assert boxes(load_set(tmp_path, "det", None, ("1", "0"))) == {"a.jpg": [("1", BOX), ("0", BOX)]}
    assert boxes(load_set(tmp_path, "det", None, ("dog", "cat", "cow"))) == {"a.jpg": [("cat", BOX), ("dog", BOX)]}
    with pytest.raises(
        DataError, match=r"no file names the classes .* the numbers 0, 1 of its boxes go beyond 0, the last of dog; .*"
    ):
        load_set(tmp_path, "det", None, ("dog",))


def test_corners_in_text_files_are_told_from_centres(tmp_path: Path) -> None:
    draw_image(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels" / "a.txt", "0 0.375 0.375 0.625 0.625\n0 0.5 0.75 1.0 1.0\n1 0.25 0 1 1\n")
    task_set = load_set(tmp_path, "det")
    found = [("0", BOX), ("0", [16.0, 18.0, 32.0, 24.0]), ("1", [8.0, 0.0, 32.0, 24.0])]
    assert boxes(task_set) == {"a.jpg": found}
    assert any(note.startswith("boxes are read as x1 y1 x2 y2 as fractions of the image") for note in task_set.notes)


@pytest.mark.parametrize("last", ["0.45 0.5 0.95 0.9", "-0.03 0.05 0.97 0.05 0.97 0.95 -0.03 0.95"])
def test_centres_stay_centres_where_one_box_sticks_out(tmp_path: Path, last: str) -> None:
    for name in "abc":
        draw_image(tmp_path / "images" / f"{name}.jpg")
        write(tmp_path / "labels" / f"{name}.txt", f"0 {last if name == 'c' else '0.5 0.5 0.75 0.75'}\n")
    assert boxes(load_set(tmp_path, "det"))["a.jpg"] == [("0", [4.0, 3.0, 28.0, 21.0])]


def test_yolo_in_pixels_is_refused(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    write(tmp_path / "val" / "labels" / "a.txt", "0 16 12 8 6")
    with pytest.raises(DataError, match=r"a.txt line 1: the box is in pixels; write `class cx cy w h`"):
        load_set(tmp_path, "det", "val")


def test_text_beside_images_that_is_no_box_is_named(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    write(tmp_path / "val" / "captions" / "a.txt", "a cat on a mat")
    with pytest.raises(DataError, match=r"no val split of a detection set .*a.txt, line 1: no YOLO box"):
        load_set(tmp_path, "det", "val")


@pytest.mark.parametrize("layout", [("{split}", "{split}"), ("{split}/images", "{split}/annotations")])
def test_voc_xml(tmp_path: Path, layout: tuple[str, str]) -> None:
    images, files = (part.format(split="valid") for part in layout)
    for name in ("a", "b", "without"):
        draw_image(tmp_path / images / f"{name}.JPG")
    write(tmp_path / files / "a.xml", xml(("dog", [12, 9, 20, 15]), ("cat", [1, 2, 11, 10])))
    write(tmp_path / files / "b.xml", xml(("dog", [24, 18, 40, 30]), size=(64, 48)))  # of twice the size
    found = load_set(tmp_path, "det", "val")
    assert found.classes == ("cat", "dog")
    assert boxes(found) == {"a.JPG": [("dog", BOX), ("cat", [1, 2, 11, 10])], "b.JPG": [("dog", BOX)]}


def test_voc_xml_of_fractions(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "a.jpg")
    write(tmp_path / "val" / "a.xml", xml(("cat", [0.25, 0.25, 0.5, 1.0])))
    assert boxes(load_set(tmp_path, "det", "val")) == {"a.jpg": [("cat", [8.0, 6.0, 16.0, 24.0])]}


def test_whole_voc_tree_is_a_detection_set_too(tmp_path: Path) -> None:
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for number in range(4):
        draw_image(voc / "JPEGImages" / f"{number}.jpg")
        write(voc / "Annotations" / f"{number}.xml", xml(("dog", [12, 9, 20, 15])))
        if number < 2:
            draw_mask(voc / "SegmentationClass" / f"{number}.png")
    for folder, split, stems in (
        ("Main", "train", "012"), ("Main", "val", "3"), ("Segmentation", "train", "0"), ("Segmentation", "val", "1"),
    ):  # fmt: skip
        write(voc / "ImageSets" / folder / f"{split}.txt", "\n".join(stems))
    assert list(boxes(load_set(tmp_path, "det", "val"))) == ["3.jpg"]
    assert list(boxes(load_set(tmp_path, "det", "train"))) == ["0.jpg", "1.jpg", "2.jpg"]
    assert [record.image.name for record in load_set(tmp_path, "seg", "val").records] == ["1.jpg"]


@pytest.mark.parametrize("name", ["test", "test60", "mini_test", "test2007"])
def test_a_list_of_one_class_does_not_stand_in_for_the_split(tmp_path: Path, name: str) -> None:
    for number in range(4):
        draw_image(tmp_path / "JPEGImages" / f"{number}.jpg")
        write(tmp_path / "Annotations" / f"{number}.xml", xml(("dog", [12, 9, 20, 15])))
    write(tmp_path / "ImageSets" / "Main" / "dog_test.txt", "0 -1\n1  1\n2  1\n3  1\n")
    write(tmp_path / "ImageSets" / "Main" / f"{name}.txt", "1\n3\n")
    assert list(boxes(load_set(tmp_path, "det", "test"))) == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("<annotation><object>", "not valid XML"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "defines entities"),
        ("<svg/>", "its root is 'svg'"),
    ],
)
def test_broken_xml_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    draw_image(tmp_path / "val" / "a.jpg")
    write(tmp_path / "val" / "a.xml", content)
    with pytest.raises(DataError, match=rf"a.xml: .*{sentence}"):
        load_set(tmp_path, "det", "val")


def test_coco_comes_before_other_formats(tmp_path: Path) -> None:
    from tests.data.builders import det_set

    det_set(tmp_path / "coco", "{split}", "{split}.json", "val")
    draw_image(tmp_path / "a" / "test" / "images" / "x.jpg")
    write(tmp_path / "a" / "test" / "labels" / "x.txt", f"0 {YOLO_BOX}")
    assert load_set(tmp_path, "det").classes == ("cat", "dog")


def test_equal_names_in_two_folders_keep_their_own_boxes(tmp_path: Path) -> None:
    for k, folder in enumerate(("cam1", "cam2")):
        draw_image(tmp_path / "images" / "val" / folder / "0.jpg")
        write(tmp_path / "labels" / "val" / folder / "0.txt", f"{k} {YOLO_BOX}")
    write(tmp_path / "data.yaml", "names: [cat, dog]")
    found = load_set(tmp_path, "det", "val")
    assert [(r.image.parent.name, r.labels.tolist()) for r in found.records] == [("cam1", [0]), ("cam2", [1])]


def test_of_two_projects_one_is_read_and_the_other_mentioned(tmp_path: Path) -> None:
    for name in ("birds", "cars"):
        draw_image(tmp_path / name / "images" / "0.jpg")
        write(tmp_path / name / "labels" / "0.txt", f"0 {YOLO_BOX}")
        write(tmp_path / name / "classes.txt", f"{name}\n")
    found = load_set(tmp_path, "det")
    assert found.classes == ("birds",)
    assert any("another set, not used (YOLO text files in cars/labels/)" in note for note in found.notes)
