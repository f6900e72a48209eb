"""Segmentation sets as usual tools write them: names of masks, names and colours of classes, 0 and 255."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import load_set
from data.classes import VOC_CLASSES
from data.dataset import TaskDataset
from data.errors import DataError
from data.images import read_mask
from data.types import VOID, TaskSet
from tests.data.builders import SIZE, draw_image, draw_mask, mask_values, seg_set

NAMES = ("background", "road", "wall")
COLOURS = np.array([[0, 0, 0], [48, 112, 32], [176, 112, 32]], dtype=np.uint8)


def thirds() -> np.ndarray:
    """Classes 0, 1 and 2 in columns."""
    return np.tile(np.repeat(np.arange(3, dtype=np.uint8), (12, 12, 8)), (SIZE[1], 1))


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def val_set(root: Path, values: np.ndarray, masks: str = "masks") -> None:
    """Two images of a validation set, both with this mask."""
    for name in "ab":
        draw_image(root / "val" / "images" / f"{name}.jpg")
        save(root / "val" / masks / f"{name}.png", values)


def masks_of(found: TaskSet) -> list[np.ndarray]:
    return [read_mask(r.mask, len(found.classes), SIZE, r.coding) for r in found.records if r.mask]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("X.jpg", "X_mask.png"),
        ("X.jpg", "mask_X.png"),
        ("X.jpg", "X.jpg.png"),
        ("X.JPG", "x.PNG"),
        ("X.png", "X_L.png"),
        ("X.jpg", "X_segmentation.tif"),
        ("X.jpg", "X.bmp"),
        ("img_X.jpg", "mask_X.png"),
        ("image X.jpg", "label X.png"),
        ("X_leftImg8bit.png", "X_gtFine_labelIds.png"),
        ("Gr\u00f6\u00dfe X.jpg", "Gro\u0308\u00dfe X.png"),  # composed and decomposed
        ("X.jpg", "X_anno.bmp"),  # GlaS
        ("X.jpg", "X_train_id.png"),  # BDD100K
        ("X_im.jpg", "run 1_X_P.png"),
    ],
)
def test_ways_to_name_a_mask_after_its_image(tmp_path: Path, image: str, mask: str) -> None:
    for name in ("1", "2", "23"):
        draw_image(tmp_path / "val" / "images" / image.replace("X", f"s{name}"))
        draw_mask(tmp_path / "val" / "masks" / mask.replace("X", f"s{name}").replace("x.", f"S{name}."))
    found = load_set(tmp_path, "seg", "val")
    numbers = [tuple(re.findall(r"s(\d+)", path.name.lower())[-1] for path in (r.image, r.mask)) for r in found.records]
    assert sorted(numbers) == [("1", "1"), ("2", "2"), ("23", "23")]


@pytest.mark.parametrize("image", ["X_sat.jpg", "X_sat.png"])
def test_images_and_masks_in_one_folder_that_share_a_part_of_their_names(tmp_path: Path, image: str) -> None:
    for name in ("1", "2", "23"):  # as DeepGlobe names them
        draw_image(tmp_path / "val" / image.replace("X", name))
        draw_mask(tmp_path / "val" / f"{name}_mask.png")
    pairs = [
        (record.image.name, record.mask.name) for record in load_set(tmp_path, "seg", "val").records if record.mask
    ]
    assert pairs == [(image.replace("X", name), f"{name}_mask.png") for name in ("1", "23", "2")]


def test_numbers_that_only_end_alike_are_no_pair(tmp_path: Path) -> None:
    for number in (10, 11):
        draw_image(tmp_path / "val" / "images" / f"{number}.jpg")
        draw_mask(tmp_path / "val" / "masks" / f"{number + 10}.png")
    with pytest.raises(DataError, match=r"no image is named after the masks in val/masks/, such as 20.png: .*10.jpg"):
        load_set(tmp_path, "seg", "val")


def test_a_folder_for_each_image_and_its_mask(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        draw_image(tmp_path / "val" / name / "image.jpg")
        draw_mask(tmp_path / "val" / name / "mask.png")
    found = load_set(tmp_path, "seg", "val")
    assert {(r.image.parent, r.mask.parent if r.mask else None) for r in found.records} == {
        (tmp_path / "val" / name, tmp_path / "val" / name) for name in ("one", "two", "three")
    }


def test_equal_names_in_two_folders_keep_their_own_masks(tmp_path: Path) -> None:
    for k, folder in enumerate(("cam1", "cam2")):
        draw_image(tmp_path / "val" / "images" / folder / "0.jpg")
        draw_mask(tmp_path / "val" / "masks" / folder / "0.png", np.full(SIZE[::-1], k + 1, dtype=np.uint8))
    found = load_set(tmp_path, "seg", "val")
    assert [(r.image.parent.name, r.mask.parent.name) for r in found.records] == [("cam1", "cam1"), ("cam2", "cam2")]
    assert [int(mask.max()) for mask in masks_of(found)] == [1, 2]


def test_tiles_are_one_set_and_two_projects_are_two(tmp_path: Path) -> None:
    for name in ("Tile 1", "Tile 2"):
        seg_set(tmp_path / "tiles" / name, "images", "masks", "x")
    assert len(load_set(tmp_path / "tiles", "seg").records) == 6
    for name in ("roads", "walls"):
        seg_set(tmp_path / "two" / name, "{split}/images", "{split}/masks", "val")
    found = load_set(tmp_path / "two", "seg")
    assert len(found.records) == 3
    assert any("another set, not used" in note and "walls/val/masks" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val/_classes.csv", "Pixel Value, Class\n0, background\n1, road\n2, wall\n"),  # Roboflow
        ("labels.txt", "__ignore__\nbackground\nroad\nwall\n"),  # LabelMe
        ("val/masks/classes.txt", "background\nroad\nwall\n"),
        ("class_names.txt", "0: background\n1: road\n2: wall\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:48,112,32::\nwall:176,112,32::\n"),
        ("val/classes.json", '["background", "road", "wall"]'),
        ("id2label.json", '{"0": "background", "1": "road", "2": "wall"}'),
        ("val/_classes.csv", "\ufeffPixel Value;Class\r\n0;background\r\n1;road\r\n2;wall\r\n"),
        ("Classes.CSV", "0\tbackground\n1\troad\n2\twall\n"),
        ("codes.txt", "background\nroad\nwall\n"),  # fastai
        ("labels.json", '{"0": "background", "1": "road", "2": "wall"}'),
        ("categories.json", '[{"id": 0, "name": "background"}, {"id": 1, "name": "road"}, {"id": 2, "name": "wall"}]'),
        ("classes.yaml", "names: [background, road, wall]\n"),
    ],
)
def test_files_that_name_the_classes(tmp_path: Path, name: str, text: str) -> None:
    val_set(tmp_path, thirds())
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = load_set(tmp_path, "seg", "val")
    assert found.classes == NAMES
    assert "assumed" not in found.layout
    np.testing.assert_array_equal(masks_of(found)[0], thirds())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:48,112,32::\nbackground:0,0,0::\nwall:176,112,32::\n"),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\nroad,48,112,32\nwall,176,112,32\n"),
        ("label_colors.txt", "0 0 0 background\n48 112 32 road\n176 112 32 wall\n"),
        ("palette.json", '{"background": [0, 0, 0], "road": [48, 112, 32], "wall": [176, 112, 32]}'),
    ],
)
@pytest.mark.parametrize("palette", [False, True])
def test_colours_of_classes(tmp_path: Path, name: str, text: str, palette: bool) -> None:
    val_set(tmp_path, COLOURS[thirds()], "SegmentationClass")
    if palette:  # the same colours, their order in the file is another
        image = Image.fromarray(2 - thirds())
        image.putpalette(COLOURS[::-1].tobytes())
        image.save(tmp_path / "val" / "SegmentationClass" / "a.png")
    (tmp_path / name).write_text(text)
    found = load_set(tmp_path, "seg", "val")
    assert found.classes == NAMES
    for mask in masks_of(found):
        np.testing.assert_array_equal(mask, thirds())
    sample = TaskDataset(found, 32, None)[0]
    assert sample.mask is not None
    assert sample.mask.unique().tolist() == [0, 1, 2]
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nroad:48,112,32::\n")
    (tmp_path / name).unlink() if name != "labelmap.txt" else None
    with pytest.raises(DataError, match=r"mask colour \(176, 112, 32\) is none of the 2 classes in the colours"):
        masks_of(load_set(tmp_path, "seg", "val"))


def test_a_file_of_boxes_names_no_classes_of_masks(tmp_path: Path) -> None:
    val_set(tmp_path, thirds())
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    assert load_set(tmp_path, "seg", "val").classes == VOC_CLASSES


def test_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    val_set(tmp_path, thirds())
    (tmp_path / "val" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, Dog\n2, cat\n")
    found = load_set(tmp_path, "seg", "val", VOC_CLASSES)
    assert found.classes == VOC_CLASSES
    assert np.unique(masks_of(found)[0]).tolist() == [0, VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")]
    with pytest.raises(DataError, match=r"_classes.csv names background, Dog, cat, but background, cat are wanted"):
        load_set(tmp_path, "seg", "val", ("background", "cat"))


def test_other_spellings_in_the_same_order_are_the_same_classes(tmp_path: Path) -> None:
    val_set(tmp_path, thirds())
    spelled = ["airplane" if name == "aeroplane" else name for name in VOC_CLASSES]
    (tmp_path / "labels.txt").write_text("\n".join(spelled))
    np.testing.assert_array_equal(masks_of(load_set(tmp_path, "seg", "val", VOC_CLASSES))[0], thirds())


@pytest.mark.parametrize(
    ("listed", "classes", "expected"),
    [
        (("background", "road", "wall", "sky"), ("background", "road", "sky", "wall"), [0, 1, 3]),
        (("background", "wall", "road"), ("background", "road", "wall"), [0, 2, 1]),
        (("background", "road", "wall", "skies"), ("background", "road", "wall", "sky"), [0, 1, 2]),
    ],
)
def test_two_classes_that_change_places_are_no_other_spellings(
    tmp_path: Path, listed: tuple[str, ...], classes: tuple[str, ...], expected: list[int]
) -> None:
    val_set(tmp_path, thirds())
    (tmp_path / "classes.txt").write_text("\n".join(listed))
    mask = masks_of(load_set(tmp_path, "seg", "val", classes))[0]
    np.testing.assert_array_equal(mask, np.array(expected)[thirds()])


def test_another_spelling_among_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    val_set(tmp_path, thirds())
    swapped = {"person": "sheep", "sheep": "person", "aeroplane": "airplane"}
    (tmp_path / "classes.txt").write_text("\n".join(swapped.get(name, name) for name in VOC_CLASSES))
    with pytest.raises(DataError, match=r"classes.txt names background, airplane, .* \(airplane: unknown\)"):
        load_set(tmp_path, "seg", "val", VOC_CLASSES)


def test_values_that_are_no_indices(tmp_path: Path) -> None:
    val_set(tmp_path, thirds() * 100)
    (tmp_path / "_classes.csv").write_text("value,name\n0,background\n100,road\n200,wall\n")
    np.testing.assert_array_equal(masks_of(load_set(tmp_path, "seg", "val"))[0], thirds())
    (tmp_path / "_classes.csv").write_text("value,name\n0,background\n100,road\n")
    with pytest.raises(DataError, match=r"mask value 200, but there are 2 classes \(0, 100, void 255\)"):
        masks_of(load_set(tmp_path, "seg", "val"))


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    binary = np.where(thirds() > 0, 255, 0).astype(np.uint8)
    val_set(tmp_path, binary)
    with pytest.raises(DataError, match=r"hold only 0 and 255, .* nothing but background .* `255, NAME`"):
        load_set(tmp_path, "seg", "val")
    (tmp_path / "_classes.csv").write_text("0, background\n255, road\n")
    np.testing.assert_array_equal(masks_of(load_set(tmp_path, "seg", "val"))[0], binary // 255)
    (tmp_path / "_classes.csv").unlink()
    (tmp_path / "classes.txt").write_text("background\nroad\n")
    found = load_set(tmp_path, "seg", "val")
    np.testing.assert_array_equal(masks_of(found)[0], binary // 255)
    assert "all masks hold only 0 and 255: 255 is read as road" in found.notes
    coloured = np.repeat(binary[..., None], 3, axis=2)
    save(tmp_path / "val" / "masks" / "a.png", coloured)
    np.testing.assert_array_equal(masks_of(load_set(tmp_path, "seg", "val"))[0], binary // 255)
    save(tmp_path / "val" / "masks" / "b.png", thirds() % 2)  # 1 is used: then 255 is void
    assert set(np.unique(masks_of(load_set(tmp_path, "seg", "val"))[0])) == {0, VOID}


def test_missing_names_are_assumed_with_a_note(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    found = load_set(tmp_path, "seg", "val")
    assert found.classes == VOC_CLASSES
    assert "no file names the classes: those of Pascal VOC are assumed" in found.layout
    found = load_set(tmp_path, "seg", "val", ("background", "road", "wall"))  # as those of a checkpoint
    assert "no file names the classes: background, road, wall, in this order, are assumed" in found.layout


@pytest.mark.parametrize(("first", "said"), [("cat", True), ("background", False), ("Unlabeled", False)])
def test_names_that_do_not_begin_with_the_background_are_noted(tmp_path: Path, first: str, said: bool) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    (tmp_path / "classes.txt").write_text(f"{first}\nroad\nwall\n")
    notes = "\n".join(load_set(tmp_path, "seg", "val").notes)
    assert (
        f"{first} comes first, so 0 in the masks is {first}; if 0 is no class, list it there as background" in notes
    ) == said


def test_names_without_the_background_are_those_of_the_wanted_classes(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    (tmp_path / "classes.txt").write_text("\n".join(VOC_CLASSES[1:]))
    found = load_set(tmp_path, "seg", "val", VOC_CLASSES)
    np.testing.assert_array_equal(masks_of(found)[0], mask_values())
    assert any(note.endswith("lists no background; 0 in the masks is read as it") for note in found.notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.json", {"num_images": 3, "seed": 0, "num_classes": 21}),
        ("meta.json", {"version": 1, "width": 32}),
        ("labels.json", {"a.jpg": 15, "b.jpg": 3}),
    ],
)
def test_figures_of_a_set_and_labels_of_files_are_no_classes(
    tmp_path: Path, name: str, content: dict[str, int]
) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    (tmp_path / "val" / name).write_text(json.dumps(content))
    assert load_set(tmp_path, "seg", "val", VOC_CLASSES).classes == VOC_CLASSES


def test_jpeg_masks_are_named(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        draw_image(tmp_path / "val" / folder / "a.jpg")
    with pytest.raises(DataError, match=r"the masks in val/masks/ are JPEG files, which blur"):
        load_set(tmp_path, "seg", "val")


def test_masks_that_fit_no_image_are_named_with_one_of_each_side(tmp_path: Path) -> None:
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    draw_mask(tmp_path / "val" / "masks" / "b.png")
    with pytest.raises(DataError, match=r"after the masks in val/masks/, such as b.png: val/images/ holds a.jpg"):
        load_set(tmp_path, "seg", "val")


def test_camvid(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw_image(tmp_path / "CamVid" / split / f"{split}_1.png")
        save(tmp_path / "CamVid" / f"{split}_labels" / f"{split}_1_L.png", COLOURS[thirds()])
    (tmp_path / "CamVid" / "class_dict.csv").write_text("name,r,g,b\nroad,48,112,32\nVoid,0,0,0\nwall,176,112,32\n")
    found = load_set(tmp_path, "seg", "val")
    assert [record.image.name for record in found.records] == ["val_1.png"]
    assert found.classes == ("road", "wall")
    np.testing.assert_array_equal(masks_of(found)[0], np.array([VOID, 0, 1])[thirds()])


def test_images_and_masks_of_many_cases_in_folders_of_their_own(tmp_path: Path) -> None:
    for case in ("TCGA_CS_4941", "TCGA_DU_7010", "TCGA_HT_A61B"):
        for k in (1, 2):
            draw_image(tmp_path / "mri" / "kaggle_3m" / case / f"{case}_{k}.tif")
            save(tmp_path / "mri" / "kaggle_3m" / case / f"{case}_{k}_mask.tif", thirds())
    (tmp_path / "mri" / "kaggle_3m" / "data.csv").write_text("patient,age\n1,40\n")
    found = load_set(tmp_path, "seg")
    assert len(found.records) == 6
    assert all(record.mask and record.mask.stem == f"{record.image.stem}_mask" for record in found.records)


def test_many_class_folders_that_look_like_masks_take_little_time(tmp_path: Path) -> None:
    for k in range(400):
        draw_mask(tmp_path / "val" / f"c{k}" / "0.png", np.full((4, 4), k % 200, dtype=np.uint8))
    began = time.process_time()
    with pytest.raises(DataError, match="no val split of a segmentation set"):
        load_set(tmp_path, "seg", "val")
    assert time.process_time() - began < 10
    assert len(load_set(tmp_path, "cls", "val").records) == 400


def test_an_uneven_table_names_no_classes(tmp_path: Path) -> None:
    val_set(tmp_path, COLOURS[thirds()])
    (tmp_path / "class_dict.csv").write_text("name,rgb\nbackground,0,0,0\nroad,48,112,32\nwall,176,112,32\n")
    assert "assumed" in load_set(tmp_path, "seg", "val").layout


@pytest.mark.parametrize("place", ["masks/1.npy", "images/1.npy", "masks/other.mat"])
def test_masks_as_arrays_are_refused_with_what_to_do(tmp_path: Path, place: str) -> None:
    draw_image(tmp_path / "images" / "1.jpg")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    np.save((tmp_path / place).with_suffix(".npy"), np.zeros((24, 32), np.uint8))
    (tmp_path / place).with_suffix(".npy").rename(tmp_path / place)
    with pytest.raises(
        DataError, match=rf"holds arrays, such as {Path(place).name}, which are not read as masks: save"
    ):
        load_set(tmp_path, "seg")
