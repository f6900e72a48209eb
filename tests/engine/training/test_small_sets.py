"""The smallest sets: one image a task, one class, one image a step, no split, fewer images than processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.errors import DataError, SetNotFound
from engine.storage.checkpoint import load
from engine.storage.errors import UserError
from engine.train import main
from engine.training.batches import EpochBatches
from tests.data.builders import annotation, coco, draw_image, draw_mask, write_json
from tests.engine.conftest import TINY

Capture = pytest.CaptureFixture[str]
SHORT = ("--optim.epochs.seg", "1", "--optim.epochs.det", "1", "--optim.epochs.cls", "1")


def one_image_sets(root: Path, split: str, colour: int) -> None:
    """A set of each task with one image, and of one class but for segmentation."""
    pictures = [
        draw_image(root / "det" / split / "images" / "1.png"),
        draw_image(root / "seg" / split / "images" / "1.png"),
        draw_image(root / "cls" / split / "cat" / "1.png"),
    ]
    for path in pictures:
        path.write_bytes(path.read_bytes() + bytes([colour]))  # another file
    document = coco(["1.png"], [annotation(1, 1, [2, 2, 12, 10])], {1: "cat"})
    write_json(root / "det" / split / "annotations.json", document)
    draw_mask(root / "seg" / split / "masks" / "1.png")


def run(root: Path, runs: Path, *more: str) -> int:
    return main([*TINY, *SHORT, "--data.root", str(root), "--runs", str(runs), "--name", "tiny", *more])


def test_one_image_of_one_class_is_learnt(tmp_path: Path, capsys: Capture) -> None:
    one_image_sets(tmp_path / "sets", "train", 1)
    one_image_sets(tmp_path / "sets", "val", 2)
    assert run(tmp_path / "sets", tmp_path / "runs") == 0
    row = load(tmp_path / "runs" / "tiny" / "cls.pt")["rows"][-1]
    assert row["Top-1"] == 1.0, "there is one class"
    assert "warning" not in capsys.readouterr().err


def test_one_image_a_step_is_learnt_from(tiny: list[str], tmp_path: Path) -> None:
    assert main([*tiny, *SHORT, "--optim.batch", "1"]) == 0
    rows = load(tmp_path / "runs" / "tiny" / "cls.pt")["rows"]
    assert all(row["loss"] > 0 for row in rows)


def without_splits(drawn: Path, root: Path) -> Path:
    """The drawn classification set, its training images alone, in no folder that names a split."""
    (source,) = (path for path in drawn.iterdir() if "imagenette" in path.name)
    shutil.copytree(source / "train", root / "cls")
    return root


def test_a_set_without_splits_is_scored_on_its_training_images_with_a_warning(
    drawn: Path, tmp_path: Path, capsys: Capture
) -> None:
    root = without_splits(drawn, tmp_path / "sets")
    assert run(root, tmp_path / "runs", "--order", "[cls]") == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: 12 of the 12 images of cls that are scored are also trained on: ")
    assert "`--data.holdout true`" in err
    assert err.count("\n") == 1


def test_what_the_warning_advises_scores_other_images(drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    root = without_splits(drawn, tmp_path / "sets")
    assert run(root, tmp_path / "runs", "--order", "[cls]", "--data.holdout", "true") == 0
    captured = capsys.readouterr()
    assert not captured.err
    assert "cls  all: 10 images" in captured.out
    assert "evaluated on: all, 2 images" in captured.out


def test_a_training_set_alone_is_refused_with_the_setting_that_splits_it(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(without_splits(drawn, tmp_path / "sets") / "cls", tmp_path / "alone" / "cls" / "train")
    with pytest.raises(SetNotFound, match=r"no val split of a classification set.*`--data.holdout true` trains on"):
        run(tmp_path / "alone", tmp_path / "runs", "--order", "[cls]")
    assert run(tmp_path / "alone", tmp_path / "runs", "--order", "[cls]", "--data.holdout", "true") == 0


def test_a_single_image_cannot_be_held_back(tmp_path: Path) -> None:
    one_image_sets(tmp_path / "sets", "train", 1)
    with pytest.raises(DataError, match="0 images of seg to train on and 1 to score on: bring two or more, or leave"):
        run(tmp_path / "sets", tmp_path / "runs", "--data.holdout", "true")


def test_each_process_gets_an_image_of_a_set_of_fewer() -> None:
    shares = [list(EpochBatches(2, 8, seed=0, rank=rank, world=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [1, 1, 1], "one step an epoch"
    assert all(len(share[0]) == 1 for share in shares)
    assert {share[0][0] for share in shares} == {0, 1}


def test_shares_of_a_batch_cover_an_epoch_once() -> None:
    shares = [list(EpochBatches(6, 3, seed=0, rank=rank, world=2)) for rank in range(2)]
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(6))


def test_a_batch_of_fewer_images_than_processes_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.batch 1 is shared by 2 processes: give 2 or more"):
        EpochBatches(6, 1, seed=0, world=2)
