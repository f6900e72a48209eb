"""Classification sets of any depth and any names."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from data.catalog import load_set
from data.classes import IMAGENETTE, NameIndex, name_index, normal_name
from data.errors import DataError
from data.types import TaskSet
from tests.data.builders import det_set, draw_image, seg_set


def draw(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        draw_image(root / path)


def counts(found: TaskSet) -> dict[str, int]:
    """Class -> number of images."""
    names = (*found.classes, *found.unknown)
    return dict(Counter(names[record.label] for record in found.records if record.label is not None))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("dog/batch1/0", "dog/batch2/0", "cat/batch1/0"), {"dog": 2, "cat": 1}),
        (("dog/0", "dog/more/0", "dog/more/deep/1", "cat/0"), {"dog": 3, "cat": 1}),
        (("a/airfield/0", "a/airport/0", "b/bank/0"), {"airfield": 1, "airport": 1, "bank": 1}),
        (("A/0", "a/0", "B/0"), {"A": 1, "a": 1, "B": 1}),
        (("C++/0", "C#/0", "C/0", "c/0"), {"C++": 1, "C#": 1, "C": 1, "c": 1}),
        (("-1/0", "0/0", "1/0"), {"-1": 1, "0": 1, "1": 1}),
        (("dog/images/0", "cat/images/0"), {"dog": 1, "cat": 1}),
        (("car/0", "train/0", "bus/0"), {"car": 1, "train": 1, "bus": 1}),
        (("photo/0", "label/0", "drawing/0"), {"photo": 1, "label": 1, "drawing": 1}),
        (("runs/0", "walks/0"), {"runs": 1, "walks": 1}),
        (("mask/0", "without_mask/0"), {"mask": 1, "without_mask": 1}),
        (("犬/0", "猫/0"), {"犬": 1, "猫": 1}),
    ],
)
@pytest.mark.parametrize("around", ["val", "face-mask-detection/Validation", "x/x/val"])
def test_class_folders(tmp_path: Path, paths: tuple[str, ...], expected: dict[str, int], around: str) -> None:
    draw(tmp_path / around, (f"{path}.jpg" for path in paths))
    assert counts(load_set(tmp_path, "cls", "val")) == expected


def test_folders_of_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    seg_set(tmp_path / "a", "val/pictures", "val/masks", "x")
    seg_set(tmp_path / "b", "val/first", "val/label", "x")
    det_set(tmp_path / "c", "val/first", "val/annotations/boxes.json", "x")
    with pytest.raises(DataError, match="no val split of a classification set"):
        load_set(tmp_path, "cls", "val")


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    draw(tmp_path / "val", ("dog/0.jpg", "cat/0.jpg", "dog/more/1.jpg", "loose.jpg", "train/0.jpg", "val/0.jpg"))
    found = load_set(tmp_path, "cls", "val")
    assert counts(found) == {"dog": 2, "cat": 1}
    text = "\n".join(found.notes)
    assert "1 images beside the class folders (left out): loose.jpg" in text
    assert "folders with images that are no classes (left out): train/, val/" in text
    assert "1 folders inside class folders: their images are of those (dog/more)" in text


def test_two_sets_below_a_root(tmp_path: Path) -> None:
    draw(tmp_path, (f"{s}/{c}/{k}.jpg" for s in ("flowers", "pets") for c in ("big", "red") for k in range(2)))
    found = load_set(tmp_path, "cls")
    assert counts(found) == {"big": 2, "red": 2}
    assert any("another set, not used (one folder per class in pets/)" in note for note in found.notes)


def test_the_set_nearest_to_the_root_is_taken(tmp_path: Path) -> None:
    draw(
        tmp_path,
        (f"{top}imagenette_160/val/{name}/0.jpg" for top in ("", "dev/") for name in ("n01440764", "n02102040")),
    )
    found = load_set(tmp_path, "cls", "val")
    assert {str(r.image.relative_to(tmp_path).parts[0]) for r in found.records} == {"imagenette_160"}
    assert any("dev/imagenette_160/val" in note for note in found.notes)


def test_known_names_decide_the_level(tmp_path: Path) -> None:
    draw(tmp_path / "val", ("one/oak/0.jpg", "two/ash/1.jpg", "two/elm/1.jpg"))
    assert counts(load_set(tmp_path, "cls", "val", ("oak", "ash"))) == {"oak": 1, "ash": 1, "elm": 1}


@pytest.mark.parametrize(
    ("path", "imagenette"),
    [
        ("cls/val/{}/0.jpg", False),
        ("imagenette2/val/{}/0.jpg", True),
        ("cls/val/{}/ILSVRC2012_val_00000{}.jpg", True),
        ("cls/val/{}/0.JPEG", True),
    ],
)
def test_numbers_are_positions_only_if_the_set_is_named_so(tmp_path: Path, path: str, imagenette: bool) -> None:
    draw(tmp_path, (path.format(k, k) for k in range(10)))
    readable = tuple(IMAGENETTE.values())
    found = load_set(tmp_path, "cls", "val", readable)
    assert [record.label for record in sorted(found.records, key=lambda r: r.image.parts[-2])] == list(range(10))
    if imagenette:
        assert "numbers are positions among Imagenette's classes, because" in found.layout
    else:  # a model that asks for ten classes says what ten numbers mean; nothing else does
        assert any(note.startswith("the folders 0 to 9 are read as the classes in their order") for note in found.notes)
        assert load_set(tmp_path, "cls", "val").classes == tuple("0123456789")


def test_numbers_count_up_in_the_order_of_the_model_if_there_is_one_for_each_class(tmp_path: Path) -> None:
    classes = ("oak", "ash", "elm")
    draw(tmp_path / "test", ("00/a.jpg", "01/b.jpg", "2/c.jpg"))
    assert [record.label for record in load_set(tmp_path, "cls", None, classes).records] == [0, 1, 2]
    assert counts(load_set(tmp_path, "cls", None, ("2", "00", "01"))) == {"2": 1, "00": 1, "01": 1}
    for others in (classes[:2], (*classes, "fir")):
        with pytest.raises(
            DataError, match=rf"test: none of the folders \(00, 01, 2\) .* all of them 0 to {len(others) - 1}"
        ):
            load_set(tmp_path, "cls", None, others)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("0_tench", "tench"),
        ("3 - Chain_Saw", "chain saw"),
        ("007.golf-ball", "golf ball"),
        ("tench, Tinca tinca", "tench"),
        ("1_English_springer,_English_springer_spaniel", "English springer"),
        ("English_springer_spaniel", "English springer"),
        ("church building", "church"),
        ("horn", "French horn"),
        ("petrol_pump", "gas pump"),
        ("Chute", "parachute"),
        ("dustcart", "garbage truck"),
    ],
)
def test_other_names_of_the_classes_of_a_model(tmp_path: Path, folder: str, name: str) -> None:
    draw(tmp_path / "test", (f"{folder}/0.jpg", "cassette player/1.jpg"))
    found = load_set(tmp_path, "cls", None, NAMES)
    assert not found.unknown
    assert counts(found) == {name: 1, "cassette player": 1}
    assert folder in load_set(tmp_path, "cls", None, (folder, "cassette player")).classes


@pytest.mark.parametrize("folder", ["tench, church", "2", "0_dog", "springer"])
def test_what_names_no_class_or_two_is_unknown(tmp_path: Path, folder: str) -> None:
    draw(tmp_path / "test", (f"{folder}/0.jpg", "cassette player/1.jpg"))
    assert load_set(tmp_path, "cls", None, NAMES).unknown == (folder,)


def test_other_names_mean_nothing_to_a_set_of_its_own(tmp_path: Path) -> None:
    draw(tmp_path / "val", ("horn/0.jpg", "bell/0.jpg", "2_chute/0.jpg"))
    assert load_set(tmp_path, "cls", "val").classes == ("2_chute", "bell", "horn")


def test_folders_of_no_class_are_passed_over_for_the_next_split_and_refused_without_one(tmp_path: Path) -> None:
    draw(tmp_path / "imagenette2-160", ("test/unlabelled/0.JPEG", "train/n01440764/0.JPEG"))
    with pytest.raises(
        DataError, match=r"imagenette2-160/test: none of the folders \(unlabelled\) is a class of tench,"
    ):
        load_set(tmp_path, "cls", None, NAMES)  # what was trained on is no substitute
    assert load_set(tmp_path, "cls", "train", NAMES).split == "train"
    draw(tmp_path / "imagenette2-160", ("val/n02102040/0.JPEG", "val/goldfish/0.JPEG"))
    found = load_set(tmp_path, "cls", None, NAMES)
    assert (found.split, counts(found)) == ("val", {"English springer": 1, "goldfish": 1})
    (note,) = (note for note in found.notes if note.startswith("passed over"))
    assert note == "passed over, no folder stands for a class: one folder per class in imagenette2-160/test/"


def test_names_of_two_sets_match_in_any_unicode_form_and_capitals(tmp_path: Path) -> None:
    draw(tmp_path / "val", (unicodedata.normalize("NFD", f"{name}/0.jpg") for name in ("Äpfel", "Öl")))
    found = load_set(tmp_path, "cls", "val", ("öl", "äpfel"))
    assert counts(found) == {"äpfel": 1, "öl": 1}
    assert load_set(tmp_path, "cls", "val").classes == ("Äpfel", "Öl")


def test_name_index() -> None:
    assert NameIndex(("A", "a"))("a") == 1
    assert name_index("b", ("B", "b ")) is None  # as like to the one as to the other
    assert normal_name("-1") != normal_name("1")
    assert name_index("1 0", ("10",)) is None


def test_files_of_other_systems_are_no_images(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "val", ("dog/0.jpg", "cat/0.jpg"))
    for junk in ("set/val/dog/._0.jpg", "set/val/dog/Thumbs.db", "__MACOSX/set/val/dog/._0.jpg", "set/val/.DS_Store"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    found = load_set(tmp_path, "cls")
    assert counts(found) == {"dog": 1, "cat": 1}
    assert found.notes == ()


def test_time_is_linear_in_classes(tmp_path: Path) -> None:
    for name in range(3_000):
        folder = tmp_path / "val" / f"c{name}"
        folder.mkdir(parents=True)
        (folder / "0.jpg").touch()
    began = time.process_time()
    found = load_set(tmp_path, "cls", "val")
    again = load_set(tmp_path, "cls", "val", found.classes)
    assert [record.label for record in again.records] == [record.label for record in found.records]
    assert len(again.records) == 3_000
    assert time.process_time() - began < 9  # 20,000 within a minute


NAMES = tuple(IMAGENETTE.values())
NUMBERS = tuple(map(str, range(10)))


@pytest.mark.parametrize(
    ("place", "folders", "suffix"),
    [
        ("val", tuple(IMAGENETTE), ".jpg"),
        ("", tuple(IMAGENETTE), ".png"),
        ("test", tuple(f"{k}_{wordnet}" for k, wordnet in enumerate(IMAGENETTE)), ".jpg"),
        ("hidden/classification", NAMES, ".jpg"),
        ("test", tuple(name.replace(" ", "_") for name in NAMES), ".png"),
        ("", tuple(name.lower().replace(" ", "-") for name in NAMES), ".jpg"),
        ("imagenette160", NUMBERS, ".jpg"),
        ("mini_imagenette_160/hidden/val", NUMBERS, ".png"),
        ("Imagenette2-160/test", tuple(f"{k:02}" for k in range(10)), ".jpg"),
    ],
)
def test_imagenette_is_known_in_every_usual_layout(
    tmp_path: Path, place: str, folders: tuple[str, ...], suffix: str
) -> None:
    for position, folder in enumerate(folders):
        draw_image(tmp_path / place / folder / f"{position}{suffix}")
    found = load_set(tmp_path, "cls", None, NAMES)
    assert not found.unknown
    assert [(record.image.stem, record.label) for record in found.records] == [(str(k), k) for k in range(10)]
    assert load_set(tmp_path, "cls", None).classes == NAMES, "the order of the ids where no model says another"
