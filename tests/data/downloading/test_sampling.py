from __future__ import annotations

import json

import pytest

from data.download import main
from data.downloading import fetch
from data.downloading.sampling import Request, choose
from data.errors import DataError
from tests.data.server import VOC, ZIP, Server, coco_files, flags, nette_members, sources, tar, tree, voc_members

FILES = sources()
CLASSES = ["det=person,dog", "seg=dog,cat", "cls=Tench,church"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "sleep", lambda seconds: None)


@pytest.fixture
def server():
    with Server(dict(FILES)) as running:
        yield running


@pytest.fixture
def sample(server, tmp_path):
    def command(*extra: str, root: str = "drawn", seed: int = 0, counts=(2, 1, 2)) -> int:
        drawn = [f"--{split}={count}" for split, count in zip(("train", "val", "test"), counts)]
        where = ["--root", str(tmp_path / root), *flags(server)]
        return main([*where, "--sample", f"--seed={seed}", *drawn, "--classes", *(extra or CLASSES)])

    return command


def test_a_sample_has_our_layout_disjoint_splits_and_official_test_images(sample, server, tmp_path):
    assert sample() == 0
    root = tmp_path / "drawn"
    names = json.loads((root / "sample.json").read_text())
    for task in ("det", "seg", "cls"):
        splits = names[task]
        assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "val": 1, "test": 2}
        assert len({name for rows in splits.values() for name in rows}) == 5
    assert {split: {row["from"] for row in rows.values()} for split, rows in names["det"].items()} == {
        "train": {"train"}, "val": {"train"}, "test": {"val"}}  # fmt: skip
    for split in ("train", "val", "test"):
        assert {int(name[-1]) % 2 for name in names["seg"][split]} == {split == "test"}  # see voc_members
        images, masks = (root / "mini_voc_seg" / split / kind for kind in ("images", "masks"))
        assert {path.stem for path in images.iterdir()} == {path.stem for path in masks.iterdir()}
        for path in (root / "imagenette_160" / split).rglob("*.JPEG"):
            part = "val" if split == "test" else "train"
            official = nette_members()[f"imagenette2-160/{part}/{path.parent.name}/{path.name}"]
            assert path.read_bytes() == official


def test_detection_annotations_keep_official_ids_boxes_and_areas(sample, tmp_path):
    assert sample("det=dog,person", counts=(4, 0, 1)) == 0
    truth = json.loads((tmp_path / "drawn/mini_coco_det/train/annotations.json").read_text())
    assert [c["id"] for c in truth["categories"]] == [1, 18]
    assert sorted(a["category_id"] for a in truth["annotations"]) == [1, 1, 18, 18]  # classes take turns
    for a in truth["annotations"]:
        assert a["category_id"] == (18 if a["image_id"] % 2 else 1)
        assert (a["bbox"], a["area"], a["iscrowd"]) == ([1.5, 2, 10, 8.25], 50.12, 0)
    names = {image["file_name"] for image in truth["images"]}
    folder = tmp_path / "drawn/mini_coco_det/train/images"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: coco_files()[f"/train2017/{name}"] for name in names
    }
    assert not (tmp_path / "drawn/mini_coco_det/val").exists()


def test_the_seed_decides(sample, tmp_path):
    for root, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert sample(root=root, seed=seed) == 0
    lists = {root: json.loads((tmp_path / root / "sample.json").read_text()) for root in "abc"}
    assert lists["a"] == lists["b"]
    assert any(lists["a"][task] != lists["c"][task] for task in ("det", "seg", "cls"))


def test_again_resumes_and_other_settings_are_refused(sample, server, tmp_path, capsys):
    assert sample() == 0
    before = tree(tmp_path / "drawn")
    server.log.clear()
    assert sample() == 0
    assert server.log == []
    next((tmp_path / "drawn").rglob("*.JPEG")).unlink()
    assert sample() == 0
    assert tree(tmp_path / "drawn") == before
    assert sample(seed=5) == 2
    assert "sample.json: drawn with other settings" in capsys.readouterr().err
    assert tree(tmp_path / "drawn") == before


def test_the_list_of_a_sample_fetches_the_same_files_elsewhere(sample, server, tmp_path):
    assert sample() == 0
    names = tmp_path / "drawn" / "sample.json"
    assert main(["--root", str(tmp_path / "copy"), "--manifest", str(names), *flags(server)]) == 0
    original = {k: v for k, v in tree(tmp_path / "drawn").items() if k.startswith(("mini", "imagenette"))}
    assert tree(tmp_path / "copy") == original


def test_a_set_that_is_already_there_is_never_mixed(sample, tmp_path, capsys):
    (tmp_path / "drawn" / "mini_coco_det").mkdir(parents=True)
    assert sample() == 2
    assert "mini_coco_det: holds another set already; choose another --root" in capsys.readouterr().err


def test_cut_connections(sample, server, tmp_path):
    assert sample(root="whole") == 0
    server.cut = 3000
    assert sample(root="cut") == 0
    assert tree(tmp_path / "whole") == tree(tmp_path / "cut")


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ("det=unicorn", "--classes det: 'unicorn' is unknown; choose from person, bicycle, dog"),
        ("cls=tench,dog", "--classes cls: 'dog' is unknown; choose from tench"),
        ("person", "--classes person: write TASK=NAME,NAME"),
        ("pretrain=dog", "--classes pretrain=dog: write one task of seg, det, cls before the names"),
        ("det,seg=dog", "--classes det,seg=dog: write one task of seg, det, cls before the names"),
        ("box=person", "--tasks box: 'box' is not a task"),
    ],
)
def test_wrong_classes(sample, capsys, classes, sentence):
    assert sample(classes) == 2
    assert sentence in capsys.readouterr().err


def test_too_few_images(sample, capsys):
    assert sample(counts=(1, 1, 100)) == 2
    assert "--test 100: only 4 unused images of the classes for seg; ask for fewer" in capsys.readouterr().err


def test_a_tar_with_the_images_first_cannot_be_drawn_from(sample, server, capsys):
    server.files[VOC] = tar(dict(reversed(voc_members().items())))
    assert sample() == 2
    assert "annotations and segmentation lists do not come before the images" in capsys.readouterr().err


def test_annotations_that_stay_broken(sample, server, capsys):
    server.files[ZIP] = b"PK not a zip"
    assert sample() == 2
    assert f"{server.url}{ZIP}: not the COCO 2017 annotations" in capsys.readouterr().err
    server.files[ZIP] = FILES[ZIP]
    assert sample() == 0


def test_choose_leaves_out_used_images_and_gives_every_class_its_turn():
    many = [f"a{i}" for i in range(50)]
    candidates = {"train": {"a": many, "b": ["b0", "b1", "a0"]}, "val": {"a": ["v"], "b": []}}
    request = Request({}, {"train": 6, "val": 4, "test": 1}, 3)
    chosen = choose("det", request, candidates, {"b0"})
    assert {"b1", "a0"} <= set(chosen["train"])
    assert "b0" not in chosen["train"] | chosen["val"]
    assert not set(chosen["train"]) & set(chosen["val"])
    assert chosen["test"] == {"v": "val"}
    with pytest.raises(DataError, match="--test 1: only 0 unused images of the classes for det"):
        choose("det", request, candidates, {"v"})
