from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.synthetic import PATTERNS, SHAPES, Settings, Shape, already_there, main, mask_of, scene, write_sets

SMALL = Settings(train=10, val=5, seed=3, size=96)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "sets"
    assert write_sets(folder, SMALL)
    return folder


def test_same_seed_same_bytes_another_seed_other_bytes(root: Path, tmp_path: Path):
    write_sets(tmp_path / "again", SMALL)
    assert files(tmp_path / "again") == files(root)
    write_sets(tmp_path / "other", Settings(10, 5, 4, 96))
    other = {k: v for k, v in files(tmp_path / "other").items() if k.endswith((".jpg", ".JPEG"))}
    assert len(other) == 45
    assert not set(other.values()) & set(files(root).values())


def test_more_images_leave_the_first_ones_as_they_were(root: Path, tmp_path: Path):
    write_sets(tmp_path / "more", Settings(12, 6, 3, 96))
    more, first = files(tmp_path / "more"), files(root)
    assert all(more[name] == data for name, data in first.items() if name.endswith((".jpg", ".png", ".JPEG")))


def test_no_image_occurs_twice(root: Path):
    images = [p for p in root.rglob("*") if p.suffix in (".jpg", ".JPEG")]
    assert len(images) == 45
    assert len({hashlib.sha256(p.read_bytes()).digest() for p in images}) == 45
    # Not only the file, the picture too.
    assert len({Image.open(p).convert("L").resize((16, 16)).tobytes() for p in images}) == 45


def test_detection_boxes_are_inside_large_enough_and_around_saturated_colour(root: Path):
    folder = root / "mini_coco_det" / "train"
    document = json.loads((folder / "annotations.json").read_text())
    assert [c["name"] for c in document["categories"]] == list(SHAPES)
    sizes = {i["id"]: (i["width"], i["height"], i["file_name"]) for i in document["images"]}
    assert len(sizes) == 10
    assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
    for annotation in document["annotations"]:
        width, height, name = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert min(x, y) >= 0
        assert x + w <= width
        assert y + h <= height
        assert annotation["area"] <= w * h
        picture = Image.open(folder / "images" / name)
        assert picture.size == (width, height)
        saturation = np.asarray(picture.crop((x, y, x + w, y + h)).convert("HSV"))[..., 1]
        assert np.quantile(saturation, 0.75) > 120
    per_image = [sum(a["image_id"] == i for a in document["annotations"]) for i in sizes]
    assert min(per_image) >= 1
    assert max(per_image) <= 4


def test_boxes_are_tight_and_overlap_is_slight():
    for seed in range(60):
        picture, shapes = scene(np.random.default_rng(seed), 160)
        total = np.zeros((picture.height, picture.width), int)
        for shape in shapes:
            x, y, w, h = shape.box()
            inside = shape.visible[y : y + h, x : x + w]
            assert inside.sum() == shape.visible.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert min(w, h) >= 0.13 * min(picture.size)
            total += shape.visible
        assert total.max() <= 1


def test_every_shape_occurs_in_every_split(root: Path):
    labels = [shape.label for seed in range(40) for shape in scene(np.random.default_rng(seed), 96)[1]]
    assert set(labels) == set(range(len(SHAPES)))
    assert min(labels.count(label) for label in range(len(SHAPES))) > 10


def test_masks_are_palette_files_of_the_image_size(root: Path):
    folder = root / "mini_voc_seg"
    assert (folder / "classes.txt").read_text().split() == ["background", *SHAPES]
    masks = sorted((folder / "val" / "masks").glob("*.png"))
    assert len(masks) == 5
    for path in masks:
        mask = Image.open(path)
        assert mask.mode == "P"
        assert mask.size == Image.open(folder / "val" / "images" / f"{path.stem}.jpg").size
        assert set(np.unique(mask)) <= {0, 1, 2, 3, 4, 255}
        assert {0, 255} < set(np.unique(mask))
        assert mask.getpalette()[3:6] == [128, 0, 0]
        assert mask.getpalette()[12:15] == [0, 0, 128]


def test_void_line_is_one_pixel_either_side_of_an_edge():
    square = np.zeros((8, 8), bool)
    square[2:6, 2:6] = True
    mask = mask_of([Shape(2, square)], 8, 8)
    assert mask[3, 3] == 3
    assert mask[4].tolist() == [0, 255, 255, 3, 3, 255, 255, 0]
    assert (mask == 3).sum() == 4


def test_classification_is_balanced_over_readable_folders(root: Path):
    folder = root / "imagenette_160" / "train"
    assert {p.name for p in folder.iterdir()} == set(PATTERNS)
    assert {len(list((folder / name).glob("*.JPEG"))) for name in PATTERNS} == {2}


def test_complete_set_is_left_alone(root: Path, capsys: pytest.CaptureFixture[str]):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert not write_sets(root, SMALL)
    arguments = ["--root", str(root), "--train", "10", "--val", "5", "--seed", "3", "--size", "96"]
    assert main(arguments) == 0
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    shown = capsys.readouterr().out
    assert "complete already" in shown
    assert "mini_voc_seg: 10 train, 5 val" in shown


def test_other_settings_are_refused(root: Path):
    with pytest.raises(DataError, match=r"was drawn with .*'seed': 3.*'seed': 4.*delete"):
        write_sets(root, Settings(10, 5, 4, 96))


def test_incomplete_set_is_refused(root: Path, tmp_path: Path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "synthetic.json").write_text((root / "synthetic.json").read_text())
    with pytest.raises(DataError, match=r"mini_coco_det.train is missing.*delete"):
        write_sets(tmp_path / "part", SMALL)


def test_foreign_folder_is_refused_and_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path) in error
    assert "choose another --root" in error
    assert files(tmp_path) == {"thesis.txt": b"mine"}
    with pytest.raises(DataError, match="is a file"):
        already_there(tmp_path / "thesis.txt", SMALL)


def test_empty_folder_is_taken_and_nothing_else_is_left(tmp_path: Path):
    (tmp_path / "sets").mkdir()
    assert write_sets(tmp_path / "sets", Settings(5, 5, 0, 64))
    assert [p.name for p in tmp_path.iterdir()] == ["sets"]


@pytest.mark.parametrize("settings", [Settings(2), Settings(val=0), Settings(size=9), Settings(seed=-1)])
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: Settings):
    with pytest.raises(DataError, match="at least"):
        write_sets(tmp_path / "sets", settings)
    assert not (tmp_path / "sets").exists()
