from __future__ import annotations

from pathlib import Path

import pytest

from data.catalog import load_set
from data.classes import IMAGENETTE, imagenette_name, name_index, normal_name
from data.errors import DataError
from data.layouts.folders import class_names
from tests.data.builders import cls_set, draw_image

READABLE = tuple(IMAGENETTE.values())


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("n01440764", "tench"),
        ("N03888257", "parachute"),
        ("n03000684_chain_saw", "chain saw"),
        ("English_springer", "English springer"),
        ("FRENCH-HORN", "French horn"),
        ("golfball", "golf ball"),
        ("chainsaw", "chain saw"),
        ("n99999999", None),
        ("n014407640", None),
        ("goldfish", None),
    ],
)
def test_imagenette_names(folder: str, name: str | None) -> None:
    assert imagenette_name(folder) == name


def test_normal_form() -> None:
    assert normal_name("  Dining__Table- big ") == "dining table big"
    assert name_index("diningtable", ("cup", "dining table")) == 1
    # The closer spelling wins, wherever it stands.
    assert name_index("a b", ("ab", "a_b")) == 1
    assert name_index("tree", ("cup",)) is None


def test_numbers_are_positions_in_the_sorted_ids_only_if_all_are() -> None:
    assert class_names(("0", "9", "3")) == {"0": "tench", "9": "parachute", "3": "chain saw"}
    assert class_names(("1", "10")) == {"1": "1", "10": "10"}
    assert class_names(("1", "dog")) == {"1": "1", "dog": "dog"}
    assert class_names(("1", "2"), classes=("1", "2")) == {"1": "1", "2": "2"}


def test_order_of_classes(tmp_path: Path) -> None:
    cls_set(tmp_path / "ids", "{split}", "train", ("n03888257", "n01440764", "n02102040"))
    assert load_set(tmp_path / "ids", "cls", "train").classes == ("tench", "English springer", "parachute")
    cls_set(tmp_path / "numbers", "{split}", "train", ("10", "9", "2"))
    assert load_set(tmp_path / "numbers", "cls", "train").classes == ("2", "9", "10")
    cls_set(tmp_path / "own", "{split}", "train", ("oak", "ash"))
    assert load_set(tmp_path / "own", "cls", "train").classes == ("ash", "oak")


@pytest.mark.parametrize("folders", [("n03394916", "n01440764"), ("French_horn", "Tench"), ("5", "0")])
def test_hidden_set_takes_the_labels_of_the_model(tmp_path: Path, folders: tuple[str, str]) -> None:
    cls_set(tmp_path, "{split}", "test", folders)
    found = load_set(tmp_path, "cls", None, READABLE)
    labels = {record.image.parent.name: record.label for record in found.records}
    assert labels == {folders[0]: 5, folders[1]: 0}
    assert found.classes == READABLE
    assert found.unknown == ()


def test_unknown_folder_is_kept_and_named(tmp_path: Path) -> None:
    cls_set(tmp_path, "{split}", "test", ("tench", "goldfish", "church"))
    found = load_set(tmp_path, "cls", "test", ("church", "tench"))
    assert found.unknown == ("goldfish",)
    assert {record.image.parent.name: record.label for record in found.records} == {
        "tench": 1, "goldfish": 2, "church": 0,
    }  # fmt: skip


def test_records_are_ordered_by_file_name(tmp_path: Path) -> None:
    for name in ("val/tench/b.JPEG", "val/church/a.jpg", "val/tench/a.png", "val/church/c.PNG"):
        draw_image(tmp_path / name)
    names = [record.image.name for record in load_set(tmp_path, "cls", "val").records]
    assert names == ["a.jpg", "a.png", "b.JPEG", "c.PNG"]


def test_empty_class_folder_is_noted(tmp_path: Path) -> None:
    cls_set(tmp_path, "{split}", "train", ("tench", "church"))
    (tmp_path / "train" / "parachute").mkdir()
    (tmp_path / "train" / "tench" / "readme.txt").write_text("text")
    found = load_set(tmp_path, "cls", "train")
    assert found.classes == ("tench", "church")
    assert "1 class folders without image (left out): parachute" in found.notes


def test_folders_without_any_image_are_refused(tmp_path: Path) -> None:
    for name in ("tench", "church"):
        (tmp_path / "imagenette" / "val" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no val split of a classification set"):
        load_set(tmp_path, "cls", "val")
