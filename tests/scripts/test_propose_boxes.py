"""Photographs without labels become a detection set whose boxes lie on what stands out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from data.catalog import load_set
from engine.settings.config import PretrainConfig
from engine.storage.errors import UserError
from scripts import propose_boxes
from scripts.propose_boxes import MOST
from tests.conftest import TEACHER

PLACES = [(20, 30, 80, 90), (60, 40, 130, 100), (40, 20, 110, 120), (30, 50, 90, 130)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs, 160 x 150, each of one bright ellipse on a dark ground."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(12):
        picture = Image.new("RGB", (160, 150), (30, 40, 30 + 5 * i))
        ImageDraw.Draw(picture).ellipse(PLACES[i % 4], fill=(250, 40 + 15 * i, 60))
        picture.save(root / f"{i:02}.png")
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small teacher, and few groups."""
    monkeypatch.setattr(PretrainConfig, "teacher", TEACHER)
    monkeypatch.setattr(propose_boxes, "GROUPS", 4)


def run(photos: Path, teacher: Path, root: Path, *more: str) -> int:
    return propose_boxes.main(
        [str(photos), "--root", str(root), "--teacher_weights", str(teacher), "--held", "3", *more]
    )


def test_boxes_lie_on_what_stands_out_in_a_set_that_trains(photos: Path, teacher: Path, tmp_path: Path) -> None:
    assert run(photos, teacher, tmp_path) == 0
    learnt, held = load_set(tmp_path, "det", "train"), load_set(tmp_path, "det", "val")
    assert (len(learnt.records), len(held.records), len(learnt.classes)) == (9, 3, 4)
    drawn = torch.tensor(PLACES).float() * 144 / 150  # the photographs are shrunk to a shorter side of 144 px
    for record in [*learnt.records, *held.records]:
        boxes = torch.as_tensor(record.boxes).float()
        assert 1 <= len(boxes) <= MOST
        assert box_iou(drawn, boxes).max() > 0.8


def test_the_same_seed_gives_the_same_set(photos: Path, teacher: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(photos, teacher, tmp_path / name, "--most", "8") == 0
    first, second = (tmp_path / name / "mini_coco_det" / "train" / "annotations.json" for name in ("a", "b"))
    assert first.read_text() == second.read_text()
    assert len(json.loads(first.read_text())["images"]) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--held", "12"], r"12 photographs show a region: give more than --held, which is 12"),
        (["--held", "0"], r"--held 0, --most all: at least one is held"),
        (["--most", "3"], r"--held 3, --most 3: at least one is held, and not all are"),
        (["--teacher_weights", "no/file.pth"], r"no/file.pth.*as teacher_weights"),
    ],
)
def test_what_cannot_work_is_refused(
    options: list[str], sentence: str, photos: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(photos, teacher, tmp_path, *options)


def test_without_opencv_the_package_is_named(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    with pytest.raises(UserError, match="pip install opencv-contrib-python-headless"):
        run(photos, teacher, tmp_path)


def test_a_set_that_is_there_is_not_touched(photos: Path, teacher: Path, tmp_path: Path) -> None:
    kept = tmp_path / "mini_coco_det" / "train" / "annotations.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    with pytest.raises(UserError, match=r"mini_coco_det is there already: give another folder as --root"):
        run(photos, teacher, tmp_path)
    assert kept.read_text() == "{}"


def test_a_root_below_a_file_and_too_few_boxes_are_named(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make .*give another folder as --root"):
        run(photos, teacher, tmp_path / "file" / "below")
    monkeypatch.setattr(propose_boxes, "GROUPS", 400)
    with pytest.raises(UserError, match=r"too few for 400 groups: give more photographs"):
        run(photos, teacher, tmp_path / "few")


def test_a_photograph_without_regions_is_left_out(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = propose_boxes.search
    monkeypatch.setattr(propose_boxes, "search", lambda image: regions(image)[: 0 if image[0, 0, 2] < 40 else None])
    assert run(photos, teacher, tmp_path) == 0
    assert len(load_set(tmp_path, "det", "train").records) == 12 - 2 - 3
