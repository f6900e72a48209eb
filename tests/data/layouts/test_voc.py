from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import load_set
from data.classes import VOC_CLASSES, voc_palette
from data.errors import DataError
from data.images import palette_reading, read_mask
from data.types import VOID
from tests.data.builders import draw_image, draw_mask, mask_values, seg_set


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def reduced(path: Path, values: np.ndarray, method: Image.Quantize | None = None) -> Path:
    """Save as a palette image whose palette holds what is in use, in an order that the program chooses."""
    Image.fromarray(values).quantize(8, method).save(path)
    return path


def with_palette(path: Path, values: np.ndarray, palette: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(values)
    image.putpalette([channel for colour in palette for channel in colour])
    image.save(path)
    return path


def test_palette_follows_the_development_kit() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    # background, aeroplane, bicycle, chair, person, tvmonitor, void
    assert palette[[0, 1, 2, 9, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    assert len(VOC_CLASSES) == 21


def test_every_way_to_store_a_mask_gives_the_same_indices(tmp_path: Path) -> None:
    values = mask_values()
    coloured = voc_palette()[values]
    alpha = np.full((*values.shape, 1), 7, dtype=np.uint8)
    paths = [
        draw_mask(tmp_path / "palette.png", values),
        save(tmp_path / "grey.png", values),
        save(tmp_path / "sixteen.png", values.astype(np.uint16)),
        save(tmp_path / "colour.png", coloured),
        save(tmp_path / "alpha.png", np.concatenate([coloured, alpha], axis=2)),
        save(tmp_path / "grey_in_three.png", np.repeat(values[..., None], 3, axis=2)),
        save(tmp_path / "grey_alpha.png", np.concatenate([values[..., None], alpha], axis=2)),
        save(tmp_path / "mask.bmp", values),
        save(tmp_path / "grey.gif", values),  # in this file and the others from here on, indices are 0, 1 and 2
        save(tmp_path / "colour.gif", coloured),
        draw_mask(tmp_path / "palette.gif", values),
        reduced(tmp_path / "reduced.png", coloured),
        reduced(tmp_path / "reduced.tif", coloured),  # its palette is filled up with black
        reduced(tmp_path / "octree.png", coloured, Image.Quantize.FASTOCTREE),
        reduced(tmp_path / "grey_reduced.png", values),
    ]
    for path in paths:
        mask = read_mask(path, 21)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, values, err_msg=path.name)
    assert set(np.unique(values)) == {0, 15, VOID}


BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
RED, PERSON, EDGE = (128, 0, 0), (192, 128, 128), (224, 224, 192)
"""VOC's colours of classes 1 and 15 and of void; GREY is that of class 7."""


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ([BLACK, PERSON, RED], [0, 15, 1]),
        ([EDGE, PERSON, BLACK, BLACK, WHITE], [VOID, 15, 0]),  # the rest fills it up
        ([BLACK, RED, EDGE], [0, 1, VOID]),
        ([BLACK, RED, (0, 128, 0)], [0, 1, 2]),
        ([BLACK, GREY, RED], [0, 7, 1]),
        ([GREY, RED, (192, 192, 128), (128, 64, 128)], [0, 1, 2]),  # CamVid's, though two of it are VOC's too
        ([BLACK, RED, (1, 2, 3)], [0, 1, 2]),
        ([(5, 6, 7), (20, 30, 40), (50, 60, 70)], [0, 1, 2]),
        ([BLACK, BLACK, BLACK], [0, 1, 2]),
        ([BLACK, PERSON, PERSON], [0, 1, 2]),
        ([(0, 0, 0), (15, 15, 15), (255, 255, 255)], [0, 15, VOID]),
        ([(3, 3, 3), (15, 15, 15), (2, 2, 2), (0, 0, 0)], [3, 15, 2]),
        ([(0, 0, 0), (12, 12, 12), (24, 24, 24)], [0, 1, 2]),  # levels to look at: 24 is no class
        ([(k, k, k) for k in range(256)], [0, 1, 2]),
    ],
)
def test_a_palette_counts_where_it_is_that_of_classes_in_another_order(
    tmp_path: Path, palette: list[tuple[int, int, int]], expected: list[int]
) -> None:
    indices = np.arange(3, dtype=np.uint8).repeat(8).reshape(4, 6)
    path = with_palette(tmp_path / "m.png", indices, palette)
    np.testing.assert_array_equal(read_mask(path, 21), np.array(expected)[indices])
    assert (palette_reading(path, 21) != "") == (expected != [0, 1, 2])


@pytest.mark.parametrize("colours", [[BLACK, WHITE], [BLACK, WHITE, GREY, GREY], [WHITE, BLACK]])
def test_black_and_white_are_any_two_classes(tmp_path: Path, colours: list[tuple[int, int, int]]) -> None:
    indices = np.arange(2, dtype=np.uint8).repeat(8).reshape(4, 4)
    np.testing.assert_array_equal(read_mask(with_palette(tmp_path / "m.png", indices, colours), 21), indices)


def test_masks_whose_palette_is_in_another_order_are_noted(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    assert not any("palette" in note for note in load_set(tmp_path, "seg", "val", VOC_CLASSES).notes)
    for number in (0, 2):
        reduced(tmp_path / "val" / "masks" / f"val{number}.png", voc_palette()[mask_values()])
    notes = load_set(tmp_path, "seg", "val", VOC_CLASSES).notes
    assert "2 masks have palettes in another order: the colours count, not the indices" in notes


def test_grey_colours_of_classes_in_another_order(tmp_path: Path) -> None:
    indices = np.where(mask_values() == 15, 7, 0)  # VOC's seventh colour is grey, (128, 128, 128)
    draw_image(tmp_path / "val" / "images" / "a.jpg")
    (tmp_path / "val" / "masks").mkdir()
    save(tmp_path / "val" / "masks" / "a.png", voc_palette()[indices])
    listed = [VOC_CLASSES[0], *VOC_CLASSES[:0:-1]]  # the seventh of these is VOC's fourteenth
    (tmp_path / "classes.txt").write_text("\n".join(listed))
    (record,) = load_set(tmp_path, "seg", "val", VOC_CLASSES).records
    assert record.mask is not None
    assert listed[7] == VOC_CLASSES[14]
    np.testing.assert_array_equal(read_mask(record.mask, 21, coding=record.coding), indices * 2)


def test_one_bit_mask_holds_classes_0_and_1(tmp_path: Path) -> None:
    values = (mask_values() == 15).astype(np.uint8)
    mask = read_mask(save(tmp_path / "bit.png", values * 255, mode="1"), 2)
    np.testing.assert_array_equal(mask, values)


@pytest.mark.parametrize("value", [21, 75, 254])
def test_index_without_class_is_refused(tmp_path: Path, value: int) -> None:
    values = mask_values()
    values[0, 0] = value
    path = draw_mask(tmp_path / "m.png", values)
    with pytest.raises(DataError, match=rf"m.png: mask value {value}, but there are 21 classes .*classes.txt"):
        read_mask(path, 21)
    assert read_mask(path, value + 1)[0, 0] == value


def test_colour_without_class_is_refused(tmp_path: Path) -> None:
    coloured = voc_palette()[mask_values()]
    coloured[0, 0] = (1, 2, 3)
    with pytest.raises(DataError, match=r"m.png: mask colour \(1, 2, 3\) is none of the 21 classes"):
        read_mask(save(tmp_path / "m.png", coloured), 21)
    with pytest.raises(DataError, match=r"mask colour \(192, 128, 128\) is none of the 15 classes"):
        read_mask(save(tmp_path / "m.png", voc_palette()[mask_values()]), 15)


def test_odd_mask_files_are_refused(tmp_path: Path) -> None:
    sixteen = mask_values().astype(np.uint16)
    sixteen[0, 0] = 65535
    with pytest.raises(DataError, match="mask value 65535"):
        read_mask(save(tmp_path / "m.png", sixteen), 21)
    with pytest.raises(DataError, match="a mask of mode F"):
        read_mask(save(tmp_path / "m.tif", mask_values().astype(np.float32)), 21)
    with pytest.raises(DataError, match=r"the mask has 32 x 24 pixels, its image 64 x 48"):
        read_mask(draw_mask(tmp_path / "m.png"), 21, size=(64, 48))


def test_pairs_by_stem_and_notes_what_has_no_partner(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    draw_image(tmp_path / "val" / "images" / "a_first.jpg")
    draw_mask(tmp_path / "val" / "masks" / "zz_last.png")
    found = load_set(tmp_path, "seg", "val")
    assert [(r.image.name, r.mask.name) for r in found.records] == [(f"val{n}.jpg", f"val{n}.png") for n in range(3)]
    assert "1 images without mask (not used): a_first" in found.notes
    assert "1 masks without image (not used): zz_last" in found.notes


def test_pairs_in_one_folder(tmp_path: Path) -> None:
    for stem in ("p", "q"):
        draw_image(tmp_path / "seg" / "val" / f"{stem}.png")
        draw_mask(tmp_path / "seg" / "val" / f"{stem}_mask.png")
    draw_image(tmp_path / "seg" / "val" / "r.png")
    found = load_set(tmp_path, "seg", "val")
    assert [(r.image.name, r.mask.name) for r in found.records] == [
        ("p.png", "p_mask.png"),
        ("q.png", "q_mask.png"),
    ]
    assert "1 images without mask (not used): r" in found.notes


def test_png_images_are_not_taken_for_masks(tmp_path: Path) -> None:
    for stem in ("p", "q"):
        draw_image(tmp_path / "val" / "a" / f"{stem}.png")
        draw_mask(tmp_path / "val" / "b" / f"{stem}.png")
    found = load_set(tmp_path, "seg", "val")
    assert {(r.image.parent.name, r.mask.parent.name) for r in found.records} == {("a", "b")}


def test_a_second_mask_folder_is_not_taken_for_the_images(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/xyz", "{split}/masks", "val")
    seg_set(tmp_path, "{split}/xyz", "{split}/labels", "val")
    assert {r.image.parent.name for r in load_set(tmp_path, "seg", "val").records} == {"xyz"}


def test_pictures_of_masks_are_not_preferred_to_masks(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    for number in range(3):
        coloured = voc_palette()[mask_values()]
        path = tmp_path / "val" / "color_masks" / f"val{number}.png"
        path.parent.mkdir(exist_ok=True)
        save(path, coloured)
    assert {r.mask.parent.name for r in load_set(tmp_path, "seg", "val").records} == {"masks"}


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    draw_mask(tmp_path / "val" / "masks" / "val1.png", np.zeros((10, 20), dtype=np.uint8))
    with pytest.raises(DataError, match=r"val1.png: the mask has 20 x 10 pixels, its image val1.jpg has 32 x 24"):
        load_set(tmp_path, "seg", "val")


def test_broken_mask_is_named(tmp_path: Path) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    (tmp_path / "val" / "masks" / "val0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"val0.png: cannot be decoded"):
        load_set(tmp_path, "seg", "val")


@pytest.mark.parametrize("folder", [".", "val"])
def test_classes_txt_replaces_the_names(tmp_path: Path, folder: str) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    (tmp_path / folder / "classes.txt").write_text("ground\n\nroad  \nhouse\n")
    assert load_set(tmp_path, "seg", "val").classes == ("ground", "road", "house")
    assert load_set(tmp_path, "seg", "val", ("Ground", "road", "house")).classes == (
        "Ground",
        "road",
        "house",
    )
    with pytest.raises(DataError, match=r"classes.txt names ground, road, house, but background, aeroplane"):
        load_set(tmp_path, "seg", "val", VOC_CLASSES)


def test_classes_txt_above_the_set_is_not_its_own(tmp_path: Path) -> None:
    seg_set(tmp_path / "mini_voc_seg", "images/{split}", "masks/{split}", "val")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_set(tmp_path, "seg", "val").classes == VOC_CLASSES


@pytest.mark.parametrize("content", [b"", b"one\n", b"road\nRoad\n", b"\xff\xfe\xfa"])
def test_odd_classes_txt_is_refused(tmp_path: Path, content: bytes) -> None:
    seg_set(tmp_path, "{split}/images", "{split}/masks", "val")
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"classes.txt: "):
        load_set(tmp_path, "seg", "val")
