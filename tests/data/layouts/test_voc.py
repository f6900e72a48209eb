from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import load_set
from data.classes import VOC_CLASSES, voc_palette
from data.errors import DataError
from data.images import read_mask
from data.types import VOID
from tests.data.builders import draw_image, draw_mask, mask_values, seg_set


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
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
    ]
    for path in paths:
        mask = read_mask(path, 21)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, values, err_msg=path.name)
    assert set(np.unique(values)) == {0, 15, VOID}


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
