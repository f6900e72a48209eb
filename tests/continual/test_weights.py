"""Remedies that act on weights: EWC, L2-SP, freezing, averaging; and composed images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from continual import EWC, L2SP, Average, Compose, Freeze, LwF, Stage, Step
from continual.base import own_weights
from continual.ewc import diagonal_fisher, normalised
from models.criterion import Criterion, LossConfig
from models.norms import freeze_statistics
from models.onehead import OneHead
from models.targets import NO_CLASS, VOID, Targets
from tests.models.builders import images, random_targets, tiny


def loss(model: OneHead, batch: Tensor, targets: Targets) -> Tensor | None:
    terms = Criterion(LossConfig())(model(batch), targets)
    return torch.stack(list(terms.values())).sum() if terms else None


def examples(task: str, count: int = 3) -> list[tuple[Tensor, Targets]]:
    return [(image, random_targets([task], seed=i)) for i, image in enumerate(images(count))]


def second_stage(model: OneHead, task: str = "det", old: tuple[str, ...] = ("seg",)) -> Stage:
    start = copy.deepcopy(model).eval().requires_grad_(False)
    return Stage((task,), old, start, lambda: examples(task), model, loss)


def shaken(model: OneHead, noise: float = 0.1) -> OneHead:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += noise * (p.abs().mean() + 0.01) * torch.randn_like(p)
    return model


# --- who owns what ---


def test_every_row_belongs_to_one_task() -> None:
    model = tiny()
    masks = [own_weights(model, [task]) for task in ("seg", "det", "cls")]
    for name in ("head.projection.weight", "head.projection.bias"):
        count = torch.stack([m[name].int() for m in masks]).sum(0)
        assert (count == 1).all()
    assert masks[0]["head.class_queries"].all()
    assert not masks[1]["head.class_queries"].any()


# --- EWC ---


class Line(OneHead):
    """A network of one weight vector, whose gradients can be written down."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        self.register_buffer("mean", torch.zeros(1), persistent=False)


def square_loss(model: OneHead, batch: Tensor, targets: Targets) -> Tensor | None:
    """(w . x - 1)^2 / 2, whose gradient is (w . x - 1) x."""
    return ((model.w * batch[0]).sum() - 1).square() / 2  # type: ignore[operator]


def test_fisher_is_the_mean_of_single_images_squared_gradients() -> None:
    model, nothing = Line(), random_targets(["cls"])
    inputs = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])]
    fisher = diagonal_fisher(model, square_loss, [(x, nothing) for x in inputs])
    # Residuals 1, -2, 0, so gradients (1, 0), (0, -2), (0, 0). The mean gradient's square would be (1/9, 4/9).
    torch.testing.assert_close(fisher["w"], torch.tensor([1 / 3, 4 / 3]))
    torch.testing.assert_close(normalised(fisher)["w"], torch.tensor([0.4, 1.6]))
    assert model.w.grad is None  # measured on a copy


def test_fisher_is_measured_in_eval_mode_and_moves_nothing() -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    fisher = diagonal_fisher(model, loss, examples("seg"))
    again = diagonal_fisher(model.eval(), loss, examples("seg"))
    assert all(torch.equal(fisher[k], again[k]) for k in fisher)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    mask = own_weights(model, ["seg"])["head.projection.weight"]
    assert fisher["head.projection.weight"][mask].any()
    assert not fisher["head.projection.weight"][~mask].any()  # rows of other tasks do not matter to this one


def test_ewc_pulls_back_what_mattered() -> None:
    model = tiny()
    ewc = EWC(3.0)
    ewc.before_stage(Stage(("seg",), (), None, lambda: [], model, loss))
    step = Step(images(1), random_targets(["det"]))
    assert ewc.penalty(step, {}) == {}
    ewc.after_stage(Stage(("seg",), (), None, lambda: examples("seg"), copy.deepcopy(model), loss))
    ewc.before_stage(second_stage(model))
    assert ewc.penalty(step, {})["ewc"].item() == 0
    with torch.no_grad():
        model.neck.lateral[0][0].weight += 0.1
    found = ewc.penalty(step, {})["ewc"]
    fisher = ewc.fisher["neck.lateral.0.0.weight"]
    assert found.item() == pytest.approx(3.0 / 2 * 0.01 * float(fisher.sum()), rel=1e-4)
    found.backward()
    torch.testing.assert_close(model.neck.lateral[0][0].weight.grad, 3.0 * 0.1 * fisher)


def test_importances_of_stages_add_up_and_survive_a_checkpoint(tmp_path) -> None:
    model, ewc = tiny(), EWC(1.0)
    ewc.after_stage(Stage(("seg",), (), None, lambda: examples("seg"), model, loss))
    first = {k: v.clone() for k, v in ewc.fisher.items()}
    ewc.after_stage(Stage(("det",), ("seg",), None, lambda: examples("det"), model, loss))
    second = normalised(diagonal_fisher(model, loss, examples("det")))
    key = "neck.lateral.0.0.weight"
    torch.testing.assert_close(ewc.fisher[key], first[key] + second[key])
    torch.save(ewc.state_dict(), tmp_path / "ewc.pt")
    restored = EWC(1.0)
    restored.load_state_dict(torch.load(tmp_path / "ewc.pt", weights_only=True))
    for name in ("fisher", "centre"):
        assert all(torch.equal(v, getattr(restored, name)[k]) for k, v in getattr(ewc, name).items())


def test_images_without_annotation_do_not_count() -> None:
    empty = random_targets(["seg"])
    empty.masks[:] = VOID
    fisher = diagonal_fisher(tiny(), loss, [(images(1)[0], empty)])
    assert not any(v.any() for v in fisher.values())
    assert not any(v.any() for v in normalised(fisher).values())


# --- L2-SP ---


def test_l2sp_binds_all_but_the_new_rows() -> None:
    model, l2sp = tiny(), L2SP(2.0)
    step = Step(images(1), random_targets(["det"]))
    l2sp.before_stage(Stage(("seg",), (), None, lambda: [], model))
    assert l2sp.penalty(step, {}) == {}
    l2sp.before_stage(second_stage(model))
    assert l2sp.penalty(step, {})["l2sp"].item() == 0
    with torch.no_grad():
        model.head.projection.bias += 0.5
    own = own_weights(model, ["det"])["head.projection.bias"]
    found = l2sp.penalty(step, {})["l2sp"]
    assert found.item() == pytest.approx(0.25 * int((~own).sum()))
    found.backward()
    expected = torch.full_like(model.head.projection.bias, 2.0 * 0.5).masked_fill(own, 0)
    torch.testing.assert_close(model.head.projection.bias.grad, expected)


# --- freezing ---


def test_only_the_new_rows_move_when_the_rest_is_frozen() -> None:
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    Freeze().before_stage(second_stage(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(model, images(2), random_targets(["det", "det"]))
        assert value is not None
        value.backward()
        optimizer.step()
    own = own_weights(model, ["det"])
    for name, p in model.named_parameters():
        if name in own and own[name].any():
            assert torch.equal(p[~own[name]], before[name][~own[name]]), name
            assert (p[own[name]] != before[name][own[name]]).any()
        else:
            assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("kept", [True, False])
def test_old_outputs_stay_to_the_bit_where_norms_are_kept_too(kept: bool) -> None:
    model, shown = tiny(), images(2, seed=3)
    with torch.no_grad():
        before = model(shown)
    Freeze().before_stage(second_stage(model, "cls", ("seg", "det")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    model.train()
    if kept:
        freeze_statistics(model)
    for _ in range(2):
        value = loss(model, images(2), random_targets(["cls", "cls"]))
        assert value is not None
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        after = model.eval()(shown)
    for name in ("pred_masks", "pred_logits", "pred_boxes"):
        assert torch.equal(after[name], before[name]) == kept, name
    assert not torch.equal(after["pred_class"], before["pred_class"])


def test_nothing_is_frozen_in_the_first_stage() -> None:
    model = tiny()
    Freeze().before_stage(Stage(("seg",), (), None, lambda: [], model))
    assert all(p.requires_grad for p in model.parameters())


# --- averaging ---


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 3.0])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Average(share)


def test_the_end_is_a_mean_of_start_and_end_but_for_the_new_rows() -> None:
    model = tiny()
    stage = second_stage(model)
    start = copy.deepcopy(model.state_dict())
    shaken(model)
    trained = copy.deepcopy(model.state_dict())
    Average(0.25).after_training(stage)
    own = own_weights(model, ["det"])
    for name, p in model.named_parameters():
        mixed = 0.75 * trained[name] + 0.25 * start[name]
        torch.testing.assert_close(p, torch.where(own[name], trained[name], mixed) if name in own else mixed)
    first = Stage(("seg",), (), None, lambda: [], model)
    unchanged = copy.deepcopy(model.state_dict())
    Average(0.25).after_training(first)
    assert all(torch.equal(v, unchanged[k]) for k, v in model.state_dict().items())


# --- LwF ---


def test_lwf_needs_final_outputs_of_old_tasks_only() -> None:
    model = tiny()
    stage = second_stage(model, "cls", ("seg", "det"))
    lwf = LwF(2.0, 0.0)
    lwf.before_stage(stage)

    def terms() -> dict[str, Tensor]:
        step = Step(images(2, seed=5), random_targets(["cls", "cls"]))
        lwf.before_step(step)
        assert step.queries is not None
        return lwf.penalty(step, model(step.images, step.queries))

    assert {k: v.item() for k, v in terms().items()} == {
        "lwf_seg": pytest.approx(0, abs=1e-5),
        "lwf_det": pytest.approx(0, abs=1e-5),
    }
    shaken(model)
    moved = terms()
    assert all(v > 1e-4 for v in moved.values())
    torch.stack(list(moved.values())).sum().backward()
    rows = model.head.projection.weight.grad
    assert not rows[model.head.block("cls")].any()
    assert rows[model.head.block("mask")].any()


def test_pixels_count_that_the_teacher_is_sure_of() -> None:
    teacher = torch.zeros(1, 2, 1, 2)
    teacher[0, 0, 0, 0] = 5.0  # sure of the left pixel, torn at the right one
    student = torch.zeros(1, 2, 1, 2)
    student[0, :, 0, 1] = torch.tensor([3.0, -3.0])
    everywhere, sure = (LwF(1.0, s).masks(student, teacher) for s in (0.0, 0.9))
    left = LwF(1.0, 0.0).masks(student[..., :1], teacher[..., :1])
    assert sure.item() == pytest.approx(left.item())
    assert everywhere.item() != pytest.approx(left.item())
    assert LwF(1.0, 1.0).masks(student, teacher).item() == 0


# --- composed images ---


def test_composed_images_show_four_and_claim_nothing() -> None:
    compose = Compose(0.5)
    batch = torch.arange(4.0)[:, None, None, None].expand(4, 3, 64, 64) / 4
    step = Step(batch.clone(), random_targets(["cls"] * 4, size=64))
    compose.before_stage(Stage(("cls",), (), None, lambda: []))
    compose.before_step(step)
    assert len(step.images) == 4  # no teacher for them
    compose.before_stage(Stage(("cls",), ("seg",), None, lambda: []))
    compose.before_step(step)
    assert step.images.shape == (6, 3, 64, 64)
    assert torch.equal(step.images[:4], batch)
    for picture in step.images[4:]:
        quarters = [picture[:, y : y + 32, x : x + 32].unique() for y in (0, 32) for x in (0, 32)]
        assert all(len(q) == 1 for q in quarters)
        assert len(torch.cat(quarters).unique()) == 4
    assert step.targets.classes[4:].tolist() == [NO_CLASS] * 2
    assert not step.targets.has_boxes[4:].any()
    assert (step.targets.masks[4:] == VOID).all()
    model = tiny()
    losses = Criterion(LossConfig())(model(step.images), step.targets)
    assert set(losses) == {"cls_ce", "cls_ce_aux"}
