"""Which sets a run trains and is evaluated on, and its images one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.errors import SetNotFound
from data.synthetic import main as draw
from data.transforms import Augment
from engine.settings.config import Config, DataConfig
from engine.storage.errors import UserError
from engine.train import main
from engine.training.examples import AugmentedImages, ExampleImages
from engine.training.sets import read_sets
from tests.engine.conftest import run_of


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of further drawn sets, with more images to evaluate on."""
    root = tmp_path_factory.mktemp("others") / "sets"
    draw(["--root", str(root), "--train", "5", "--val", "7", "--size", "64", "--seed", "5"])
    return root


def test_sets_are_evaluated_on_the_root_s_own_images_unless_another_root_is_named(drawn: Path, others: Path) -> None:
    config = Config(data=DataConfig(root=str(drawn)))
    train, held = read_sets(config)
    assert {task: len(s.records) for task, s in held.items()} == {"seg": 5, "det": 5, "cls": 5}
    moved = replace(config, data=replace(config.data, eval_root=str(others)))
    same, elsewhere = read_sets(moved)
    for task, learnt in train.items():
        assert [r.image for r in same[task].records] == [r.image for r in learnt.records]
        assert len(elsewhere[task].records) == 7
        assert all(record.image.is_relative_to(others) for record in elsewhere[task].records)
        assert elsewhere[task].classes == learnt.classes


def test_a_root_without_sets_to_evaluate_on_is_an_error(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(SetNotFound, match=str(tmp_path)):
        read_sets(Config(data=DataConfig(root=str(drawn), eval_root=str(tmp_path))))


def test_images_held_back_and_another_root_contradict_each_other(drawn: Path, others: Path) -> None:
    with pytest.raises(UserError, match=r"data.holdout .* data.eval_root .*: set one of the two"):
        read_sets(Config(data=DataConfig(root=str(drawn), holdout=True, eval_root=str(others))))


def test_an_example_is_plain_or_augmented_anew_with_its_annotation(drawn: Path) -> None:
    seg = read_sets(Config(data=DataConfig(root=str(drawn))))[0]["seg"]
    plain, augmented = (
        ExampleImages([seg], 64),
        AugmentedImages(seg, 64, Augment(scale=(1, 1), aspect=1, color=0, grey=0)),
    )
    assert len(plain) == len(augmented) == 12
    image, targets = plain[3]
    torch.manual_seed(0)
    views = [augmented[3] for _ in range(12)]
    mirrored = [not torch.equal(t.masks, targets.masks) for _, t in views]
    assert 0 < sum(mirrored) < len(views)
    for (view, annotation), turned in zip(views, mirrored):
        torch.testing.assert_close(view.flip(-1) if turned else view, image, atol=0.01, rtol=0)
        assert torch.equal(annotation.masks.flip(-1) if turned else annotation.masks, targets.masks)


def test_augmented_images_follow_torch_s_seed(drawn: Path) -> None:
    images = AugmentedImages(read_sets(Config(data=DataConfig(root=str(drawn))))[0]["det"], 64, Augment())
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(images[0][0])
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize(
    ("distill", "replay_sets", "boxes_teach", "masks_teach", "seg", "det"),
    [
        (1, 2, True, True, 24, 24),
        (1, 0, True, True, 24, 12),
        (0, 2, True, True, 12, 24),
        (0, 0, True, True, 12, 12),
        (1, 2, False, False, 12, 12),
    ],
)
def test_boxes_and_masks_of_the_same_names_learn_from_each_other_s_images(
    distill: int, replay_sets: int, boxes_teach: bool, masks_teach: bool, seg: int, det: int, tiny: list[str]
) -> None:
    """Boxes teach masks by the teacher's outputs alone, masks teach boxes by replay alone."""
    settings = [f"--continual.distill_boxes={boxes_teach}".lower(), f"--continual.replay_boxes={masks_teach}".lower()]
    amounts = [f"--continual.distill={distill}", f"--continual.replay_sets={replay_sets}"]
    run = run_of([*tiny, *settings, *amounts])
    counts = {task: len(images) for task, images in run.learnt_from().items()}
    assert counts == {"seg": seg, "det": det, "cls": 12}


def test_sets_that_are_there_but_in_no_stage_are_not_learnt_from(tiny: list[str]) -> None:
    assert run_of([*tiny, "--order", "[cls]"]).learnt_from().keys() == {"cls"}


def test_a_stage_knows_which_mask_each_class_of_boxes_has(tiny: list[str]) -> None:
    run = run_of(tiny)
    stage = run.begin("seg", None)
    assert stage.mask_class is not None
    names = [run.classes["seg"][value] for value in stage.mask_class.tolist()]
    assert names == list(run.classes["det"])
    assert run.mask_named(stage) is None  # no mask is replayed yet


@pytest.mark.parametrize(("replay_sets", "named"), [("2", True), ("0", False)])
def test_masks_name_boxes_only_where_they_are_replayed(
    replay_sets: str, named: bool, tiny: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny, "--continual.replay_boxes", "true", "--continual.replay_sets", replay_sets]
    assert main([*arguments, "--stage", "seg"]) == 0
    run = run_of(arguments)
    assert (run.mask_named(run.begin("det", None)) is not None) == named


def test_masks_give_no_boxes_before_boxes_are_learnt(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, "--order", "[seg,cls,det]", "--continual.replay_sets", "2", "--continual.replay_boxes", "true"]
    assert main([*arguments, "--stage", "seg"]) == 0
    run = run_of(arguments)
    _, targets = run.begin("cls", None).old_examples("seg")[0]
    assert targets.has_boxes.tolist() == [False]


def test_replayed_masks_give_boxes_of_the_classes_that_both_tasks_know(tiny: list[str]) -> None:
    run = run_of(tiny)
    _, targets = run.old_examples("seg", boxed=True)[0]
    assert targets.has_boxes.tolist() == [True]
    assert len(targets.boxes[0]) > 0
    for label in targets.labels[0].tolist():
        assert run.classes["seg"].index(run.classes["det"][label]) in targets.masks
    assert run.old_examples("seg", boxed=False)[0][1].has_boxes.tolist() == [False]
    assert run.old_examples("det", boxed=True)[0][1].has_boxes.tolist() == [True]
