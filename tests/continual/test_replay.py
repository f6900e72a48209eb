from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.base import Stage, Step
from continual.replay import MOST, Exemplar, Replay, classes_of, cover, mirrored
from data.transforms import Augment
from engine.training.batches import varied
from models.criterion import Criterion, LossConfig
from models.targets import NO_CLASS, VOID, Targets
from tests.models.builders import images, object_targets, random_targets, tiny

SIZE = 32
Example = tuple[Tensor, Targets]


def labelled(*labels: int) -> Targets:
    """One image with an object of each label."""
    return object_targets([torch.full((len(labels), 4), 0.5)], [torch.tensor(labels, dtype=torch.int64)], SIZE)


def examples(task: str, count: int) -> list[Example]:
    """Images of one grey each, whole steps of 1/255, so that they can be told apart."""
    offset = {"seg": 0, "det": 60, "cls": 120}[task]
    grey = [torch.full((3, SIZE, SIZE), (offset + i) / 255) for i in range(count)]
    return [(image, random_targets([task], size=SIZE, seed=i)) for i, image in enumerate(grey)]


def stage(tasks: tuple[str, ...], old: tuple[str, ...] = (), count: int = 15) -> Stage:
    return Stage(tasks, old, None, lambda: [e for task in tasks for e in examples(task, count)])


def filled(size: int = 4, per_step: int = 2, tasks: tuple[str, ...] = ("seg", "det")) -> Replay:
    """Replay that has seen the stages of `tasks`."""
    replay = Replay(size, per_step, weight=1.0, vary=False)
    for i, task in enumerate(tasks):
        replay.before_stage(stage((task,), tasks[:i]))
        replay.after_stage(stage((task,), tasks[:i]))
    return replay


def new_step() -> Step:
    return Step(torch.zeros(3, 3, SIZE, SIZE), random_targets(["cls"] * 3, size=SIZE))


# --- the buffer's size ---


@pytest.mark.parametrize("size", [0, -1, 11, 1000])
def test_a_buffer_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"continual.replay is {size}: a buffer holds 1 to 10 images a task"):
        Replay(size, 2, 1.0, False)


@pytest.mark.parametrize("per_step", [0, -2, 11])
def test_replaying_nothing_or_too_much_a_step_is_refused(per_step: int) -> None:
    with pytest.raises(ValueError, match=f"continual.replay_step is {per_step}: show 1 to 10"):
        Replay(5, per_step, 1.0, False)


def test_at_most_ten_images_of_each_task_are_kept() -> None:
    replay = filled(MOST, tasks=("seg", "det", "cls"))
    kept = [k.task for k in replay.buffer]
    assert {task: kept.count(task) for task in ("seg", "det", "cls")} == {"seg": 10, "det": 10, "cls": 10}
    assert {k.image.dtype for k in replay.buffer} == {torch.uint8}


def test_a_stage_of_several_tasks_keeps_images_of_each() -> None:
    replay = Replay(3, 2, 1.0, False)
    replay.after_stage(stage(("seg", "det", "cls")))
    assert [k.task for k in replay.buffer] == ["seg"] * 3 + ["det"] * 3 + ["cls"] * 3


def test_a_small_set_is_kept_whole() -> None:
    replay = Replay(10, 2, 1.0, False)
    replay.after_stage(stage(("det",), count=4))
    assert len(replay.buffer) == 4


# --- steps ---


def test_nothing_is_replayed_in_the_first_stage() -> None:
    replay = Replay(4, 2, 1.0, False)
    replay.before_stage(stage(("seg",)))
    step = new_step()
    before = step.images
    replay.before_step(step)
    assert step.images is before
    assert len(step.targets) == 3


@pytest.mark.parametrize(("per_step", "added"), [(1, 1), (2, 2), (8, 8), (10, 8)])
def test_every_step_replays_even_if_the_buffer_is_smaller_than_a_step_s_share(per_step: int, added: int) -> None:
    replay = filled(4, per_step)
    replay.before_stage(stage(("cls",), ("seg", "det")))
    for _ in range(5):
        step = new_step()
        replay.before_step(step)
        assert step.images.shape == (3 + added, 3, SIZE, SIZE)
        assert len(step.targets) == len(step.targets.labels) == len(step.targets.has_boxes) == 3 + added
        assert step.targets.masks.shape == (3 + added, SIZE, SIZE)
        assert step.targets.classes.shape == (3 + added,)
        assert not step.images[:3].any()  # the new images stay where they were


def test_images_come_back_as_they_were_with_their_own_annotation() -> None:
    torch.manual_seed(0)
    replay = filled(5, 4)
    replay.before_stage(stage(("cls",), ("seg", "det")))
    known = {round(float(image[0, 0, 0]) * 255): t for image, t in examples("seg", 15) + examples("det", 15)}
    seen = set()
    for _ in range(20):
        step = new_step()
        replay.before_step(step)
        for i in range(3, 7):
            assert step.images.dtype == torch.float32
            assert len(step.images[i].unique()) == 1
            grey = round(float(step.images[i, 0, 0, 0]) * 255)
            torch.testing.assert_close(step.images[i], torch.full((3, SIZE, SIZE), grey / 255))
            seen.add(grey)
            truth = known[grey]
            assert step.targets.has_boxes[i] == truth.has_boxes[0]
            assert torch.equal(step.targets.labels[i], truth.labels[0])
            assert torch.equal(step.targets.boxes[i][:, 1:], truth.boxes[0][:, 1:])
            assert torch.equal(step.targets.masks[i].unique(), truth.masks.unique())
            assert step.targets.classes[i] == NO_CLASS
    assert len(seen) == 10  # all of the buffer has its turn


def test_images_are_replayed_mirrored_half_of_the_time() -> None:
    torch.manual_seed(0)
    ramp = (torch.arange(SIZE) / 255).expand(3, SIZE, SIZE)
    box = torch.tensor([[0.25, 0.5, 0.1, 0.2]])
    replay = Replay(1, 1, 1.0, False)
    kept = object_targets([box], [torch.tensor([0])], SIZE)
    replay.after_stage(Stage(("det",), (), None, lambda: [(ramp, kept)]))
    replay.before_stage(stage(("cls",), ("det",)))
    turned = 0
    for _ in range(60):
        step = new_step()
        replay.before_step(step)
        flipped = bool(step.images[3, 0, 0, 0] > step.images[3, 0, 0, -1])
        turned += flipped
        assert step.targets.boxes[3][0, 0].item() == (0.75 if flipped else 0.25)
    assert 15 < turned < 45
    assert torch.equal(replay.buffer[0].targets.boxes[0], box)  # the kept one is not touched


# --- what is chosen ---


def test_the_choice_covers_the_classes() -> None:
    contents = [{0}, {0, 1}, {0, 1}, {2}, {0, 1, 2, 3}, {4}]
    # Most classes first; then class 4, not seen yet; then two classes seen once rather than one.
    assert cover(contents, 3) == [4, 5, 1]
    assert sorted(cover(contents, 10)) == list(range(6))


def test_classes_are_balanced_where_each_image_shows_one() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    shown = [labels[i] for i in cover([{label} for label in labels], 6)]
    assert sorted(shown[:3]) == [0, 1, 2]
    assert [shown.count(label) for label in range(3)] == [3, 2, 1]


def test_classes_of_each_kind_of_annotation() -> None:
    assert classes_of(labelled(2, 0, 2)) == {0, 2}
    assert classes_of(labelled()) == set()
    seg = random_targets(["seg"], size=SIZE)
    seg.masks[:] = VOID
    seg.masks[:, :8] = 4
    assert classes_of(seg) == {4}
    cls = random_targets(["cls"], size=SIZE)
    assert classes_of(cls) == {int(cls.classes[0])}


def test_a_single_image_is_annotated_for_one_task() -> None:
    for task in ("seg", "det", "cls"):
        assert random_targets([task], size=SIZE).task == task
    assert labelled().task == "det"  # no objects is an annotation, too


# --- mirror image ---


def test_boxes_and_masks_follow_the_pixels() -> None:
    image, mask = torch.zeros(3, SIZE, SIZE), torch.full((1, SIZE, SIZE), VOID)
    image[:, 4:12, 2:6] = 1
    mask[:, 4:12, 2:6] = 3
    box = torch.tensor([[4 / SIZE, 8 / SIZE, 4 / SIZE, 8 / SIZE]])
    targets = Targets([box], [torch.tensor([1])], torch.tensor([True]), mask, torch.tensor([2]))
    turned, found = mirrored(image, targets)
    (cx, cy, w, h) = (found.boxes[0][0] * SIZE).tolist()
    inside = turned[:, round(cy - h / 2) : round(cy + h / 2), round(cx - w / 2) : round(cx + w / 2)]
    assert inside.shape == (3, 8, 4)
    assert inside.all()
    assert turned.sum() == inside.sum()
    assert torch.equal(found.masks[0] == 3, turned[0] == 1)
    assert (found.labels[0].tolist(), found.has_boxes.tolist(), found.classes.tolist()) == ([1], [True], [2])
    back = mirrored(turned, found)
    assert torch.equal(back[0], image)
    torch.testing.assert_close(back[1].boxes[0], box)


# --- the loss, the checkpoint ---


def test_replayed_images_go_to_the_terms_of_their_own_task() -> None:
    model, criterion = tiny(), Criterion(LossConfig())
    for old, terms in (("seg", {"seg_ce", "seg_dice"}), ("det", {"conf", "l1", "giou"})):
        replay = Replay(2, 2, 1.0, False)
        kept = [(image, random_targets([old], seed=i)) for i, image in enumerate(images(2))]
        replay.after_stage(Stage((old,), (), None, lambda kept=kept: kept))
        replay.before_stage(stage(("cls",), (old,)))
        step = Step(images(2, seed=1), random_targets(["cls", "cls"]))
        replay.before_step(step)
        with torch.no_grad():
            losses = criterion(model(step.images), step.targets)
        assert {n for n, v in losses.items() if v > 0 and not n.endswith(("_aux", "_dense"))} == {*terms, "cls_ce"}


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_stored_outputs_hold_the_network_to_its_old_outputs(task: str) -> None:
    torch.manual_seed(0)
    model = tiny()
    replay = Replay(3, 3, 2.0, False)
    kept = [(image, random_targets([task], seed=i)) for i, image in enumerate(images(3))]
    kept = [((image * 255).round() / 255, targets) for image, targets in kept]  # as a buffer keeps it
    replay.after_stage(Stage((task,), (), None, lambda: kept, model))
    other = "cls" if task != "cls" else "seg"
    replay.before_stage(Stage((other,), (task,), None, lambda: []))

    def term() -> Tensor:
        step = Step(images(2, seed=9), random_targets([other] * 2))
        replay.before_step(step)
        losses = replay.penalty(step, model(step.images))
        assert set(losses) == {f"replay_{task}"}
        return losses[f"replay_{task}"]

    rounding = max(term().item() for _ in range(4))  # mirrored or not; half precision was stored
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * p.abs().mean() * torch.randn_like(p)
    moved = term()
    assert moved > 10 * rounding
    assert moved > 0.004
    moved.backward()
    rows = dict(zip(model.head.rows, model.head.projection.weight.grad.split(list(model.head.rows.values()))))
    blocks = {"seg": {"present", "mask"}, "det": {"box", "conf", "det"}, "cls": {"cls"}}[task]
    assert {name for name, row in rows.items() if row.any()} == blocks


def test_augmented_images_differ_each_time_and_need_no_stored_output() -> None:
    torch.manual_seed(0)
    model = tiny()
    replay = Replay(1, 1, 2.0, True)
    kept = [(images(1)[0], random_targets(["seg"]))]
    replay.after_stage(Stage(("seg",), (), None, lambda: kept, model))
    replay.before_stage(Stage(("cls",), ("seg",), None, lambda: [], vary=partial(varied, augment=Augment())))
    assert replay.buffer[0].outputs == []
    shown = []
    for _ in range(2):
        step = Step(images(2, seed=9), random_targets(["cls"] * 2))
        replay.before_step(step)
        assert not replay.penalty(step, model(step.images))
        assert step.targets.classes.tolist()[2:] == [NO_CLASS]
        shown.append(step)
    assert not torch.allclose(shown[0].images[2], shown[1].images[2])
    assert not torch.equal(shown[0].targets.masks[2], shown[1].targets.masks[2])


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    replay = filled(4, 2)
    torch.save(replay.state_dict(), tmp_path / "state.pt")
    restored = Replay(4, 2, 1.0, False)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(restored.buffer) == 8
    for kept, expected in zip(restored.buffer, replay.buffer):
        assert isinstance(kept, Exemplar)
        assert torch.equal(kept.image, expected.image)
        assert isinstance(kept.targets, Targets)
        for name, value in vars(expected.targets).items():
            found = getattr(kept.targets, name)
            assert all(torch.equal(a, b) for a, b in zip(found, value)), name
    steps = []
    for remedy in (replay, restored):
        remedy.before_stage(stage(("cls",), ("seg", "det")))
        torch.manual_seed(3)
        steps.append(new_step())
        remedy.before_step(steps[-1])
    assert torch.equal(steps[0].images, steps[1].images)
    assert torch.equal(steps[0].targets.masks, steps[1].targets.masks)
