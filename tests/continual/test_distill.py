from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from continual.base import Stage, Step
from continual.distill import Distill
from continual.teacher_remedy import divergence, feature_distance, object_distance
from models.head import Queries
from models.onehead import OneHead
from tests.models.builders import images, random_targets, tiny

ALL = ("seg", "det", "cls")
TERMS = {f"distill_{task}" for task in ALL}


@pytest.fixture(scope="module")
def start() -> OneHead:
    return tiny().requires_grad_(False)


def new_step() -> Step:
    return Step(images(2, seed=5), random_targets(["cls", "cls"]))


def in_stage(start: OneHead, old: tuple[str, ...] = ALL, weight: float = 1.0, features: float = 0.0) -> Distill:
    distill = Distill(weight, features, boxes=False)
    distill.before_stage(Stage(("cls",), old, start, lambda: []))
    return distill


def student_of(start: OneHead, noise: float = 0.0) -> OneHead:
    """The teacher's copy, its weights shaken."""
    torch.manual_seed(1)
    student = copy.deepcopy(start).requires_grad_(True)
    with torch.no_grad():
        for p in student.parameters():
            p += noise * p.abs().mean() * torch.randn_like(p)
    return student


def penalty(distill: Distill, student: OneHead) -> dict[str, Tensor]:
    step = new_step()
    distill.before_step(step)
    return distill.penalty(step, student(step.images, step.queries))


# --- values ---


@pytest.mark.parametrize("stage", [Stage(("seg",), (), None, lambda: []), Stage(("seg",), (), tiny(), lambda: [])])
def test_there_is_no_penalty_before_there_is_something_to_remember(stage: Stage, start: OneHead) -> None:
    distill = Distill(1.0, 1.0, boxes=False)
    distill.before_stage(stage)
    step = new_step()
    distill.before_step(step)
    assert step.queries is None
    assert distill.penalty(step, start(step.images)) == {}


@torch.no_grad()
def test_a_student_that_equals_its_teacher_pays_nothing(start: OneHead) -> None:
    losses = penalty(in_stage(start), student_of(start))
    assert {k: v.item() for k, v in losses.items()} == {k: pytest.approx(0, abs=1e-5) for k in TERMS}


def test_the_gradient_is_zero_where_the_two_agree(start: OneHead) -> None:
    student = student_of(start)
    reference = student_of(start, noise=0.1)
    norms = []
    for model in (student, reference):
        torch.stack(list(penalty(in_stage(start), model).values())).sum().backward()
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)))
    # L1 has no gradient of size zero beside its minimum, so rounding may leave a little.
    assert norms[0] < 0.05 * norms[1]


@torch.no_grad()
def test_the_penalty_grows_with_the_distance(start: OneHead) -> None:
    near, far = (penalty(in_stage(start), student_of(start, noise)) for noise in (0.02, 0.2))
    for name in TERMS:
        assert 1e-6 < near[name] < far[name], name


@torch.no_grad()
def test_only_old_tasks_count_and_the_weight_is_a_factor(start: OneHead) -> None:
    student = student_of(start, 0.1)
    full = penalty(in_stage(start), student)
    for old in (("seg",), ("seg", "det"), ("det",)):
        losses = penalty(in_stage(start, old, weight=3.0), student)
        assert set(losses) == {f"distill_{task}" for task in old}
        if "det" in old:  # otherwise the student selects its own queries
            for name, value in losses.items():
                assert value.item() == pytest.approx(3 * full[name].item(), rel=1e-4)


@torch.no_grad()
def test_objects_count_alike_dense_and_in_every_layer(start: OneHead) -> None:
    step, distill = new_step(), in_stage(start)
    distill.before_step(step)
    outputs, teacher = student_of(start, 0.1)(step.images, step.queries), step.teacher_outputs
    assert teacher is not None
    pairs = [(outputs["dense"], teacher["dense"]), (outputs, teacher)]
    pairs += list(zip(outputs["aux_outputs"][-2:], teacher["aux_outputs"][-2:]))  # two layers before the last
    mean = sum(object_distance(s, t).item() for s, t in pairs) / 4
    assert distill.objects(outputs, teacher).item() == pytest.approx(mean, rel=1e-5)


def test_divergence_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    # Teacher 3/4 and 1/4, student 1/2 each.
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence(student, teacher, 1).tolist() == pytest.approx([expected])
    assert divergence(teacher + 7, teacher, 1).tolist() == pytest.approx([0], abs=1e-6)


def test_temperature_softens_both_and_scales_back() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert divergence(student, teacher, 1, temperature=2.0).tolist() == pytest.approx([expected])


def test_feature_distance_by_hand() -> None:
    one, two = torch.full((1, 2, 4, 4), 1.0), torch.full((1, 2, 2, 2), 2.0)
    assert feature_distance([one, two], [one, two]).item() == 0
    # Off by 1 where the teacher's mean square is 1, by 1 where it is 4.
    assert feature_distance([one + 1, two + 1], [one, two]).item() == pytest.approx((1 + 0.25) / 2)


def test_feature_maps_are_held_as_well(start: OneHead) -> None:
    distill = in_stage(start, ("seg",), weight=1.0, features=2.0)
    same, moved = (penalty(distill, student_of(start, noise)) for noise in (0.0, 0.1))
    assert set(same) == {"distill_seg", "distill_features"}
    assert same["distill_features"].item() == pytest.approx(0, abs=1e-6)
    assert moved["distill_features"].item() > 1e-4
    student = student_of(start, 0.1)
    penalty(distill, student)["distill_features"].backward()
    assert all(p.grad is None for p in student.head.parameters())
    assert all(p.grad is not None for p in student.neck.parameters())


def test_object_distance_by_hand() -> None:
    def objects(conf: list[float], x: list[float]) -> dict[str, Tensor]:
        boxes = torch.tensor([[[cx, 0.5, 0.2, 0.4] for cx in x]])
        one_class = torch.tensor([conf])[..., None] + torch.tensor([0.0, -50.0])  # of the other they see nothing
        return {"pred_logits": one_class, "pred_boxes": boxes}

    teacher = objects([math.log(3), -50.0], [0.5, 0.5])  # sure to 3/4, and of nothing
    assert object_distance(teacher, teacher).item() == pytest.approx(0, abs=1e-7)
    # A tenth of the image is half the box's width; the second query's box does not matter. Divided by max(3/4, 1).
    moved = objects([math.log(3), -50.0], [0.6, 0.9])
    assert object_distance(moved, teacher).item() == pytest.approx(0.75 * 0.5, rel=1e-5)
    # Confidence 1/2 for 3/4: its Kullback-Leibler divergence.
    unsure = objects([0.0, -50.0], [0.5, 0.5])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert object_distance(unsure, teacher).item() == pytest.approx(expected, rel=1e-4)
    # A false alarm where the teacher sees nothing costs as well.
    alarm = objects([math.log(3), 0.0], [0.5, 0.5])
    assert object_distance(alarm, teacher).item() == pytest.approx(math.log(2), rel=1e-4)


def test_values_are_float32_and_finite_in_half_precision(start: OneHead) -> None:
    step, distill, student = new_step(), in_stage(start), student_of(start, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        distill.before_step(step)
        outputs = student(step.images, step.queries)
    losses = distill.penalty(step, outputs)
    assert outputs["pred_class"].dtype == torch.bfloat16
    assert {v.dtype for v in losses.values()} == {torch.float32}
    assert all(v.isfinite() for v in losses.values())


# --- queries ---


@torch.no_grad()
def test_the_student_decodes_the_teachers_selection(start: OneHead) -> None:
    student = student_of(start)
    student.head.projection.weight[4].neg_()  # another confidence, so another selection
    step, distill = new_step(), in_stage(start)
    distill.before_step(step)
    assert isinstance(step.queries, Queries)
    teacher = start(step.images)
    assert torch.equal(step.queries.index, teacher["queries"].index)
    assert torch.equal(step.queries.boxes, teacher["queries"].boxes)
    own = student(step.images)
    assert not torch.equal(own["queries"].index.sort().values, step.queries.index.sort().values)
    followed = student(step.images, step.queries)
    assert torch.equal(followed["queries"].index, teacher["queries"].index)
    # Only the confidence differs, so that on the teacher's selection the boxes of the first layers agree.
    torch.testing.assert_close(followed["pred_boxes"], teacher["pred_boxes"])
    assert not torch.allclose(own["pred_boxes"], teacher["pred_boxes"])


@torch.no_grad()
def test_decoder_outputs_are_compared_index_by_index(start: OneHead) -> None:
    student = student_of(start)
    step, distill = new_step(), in_stage(start, ("det",))
    distill.before_step(step)
    assert step.queries is not None
    turned = Queries(step.queries.index.flip(1), step.queries.boxes.flip(1))
    same, other = (distill.penalty(step, student(step.images, q)) for q in (step.queries, turned))
    assert same["distill_det"] < 1e-5
    assert other["distill_det"] > 1e-3


@torch.no_grad()
def test_dense_tokens_and_every_layer_count(start: OneHead) -> None:
    step, distill = new_step(), in_stage(start, ("det",))
    distill.before_step(step)
    clean = student_of(start)(step.images, step.queries)
    parts = [clean["dense"], clean, *clean["aux_outputs"][1:]]
    assert len(parts) == 4
    values = []
    for found in parts:
        kept = found["pred_logits"]
        found["pred_logits"] = kept + 1
        values.append(float(distill.penalty(step, clean)["distill_det"]))
        found["pred_logits"] = kept
    assert min(values) > 1e-3
    assert distill.penalty(step, clean)["distill_det"] < 1e-5


def test_the_students_own_selection_stays_where_detection_is_new(start: OneHead) -> None:
    step = new_step()
    in_stage(start, ("seg",)).before_step(step)
    assert step.queries is None


# --- gradients ---


@pytest.mark.parametrize("old", [(task,) for task in ALL])
def test_gradients_reach_all_of_the_student_and_none_of_the_teacher(start: OneHead, old: tuple[str, ...]) -> None:
    teacher = copy.deepcopy(start).requires_grad_(True)  # even if somebody forgot to freeze it
    before = copy.deepcopy(teacher.state_dict())
    student = student_of(start, 0.05)
    torch.stack(list(penalty(in_stage(teacher, old), student).values())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())

    def reached(module: nn.Module) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())

    layers = dict(student.head.layers.named_children())
    assert [
        n for n, m in {"backbone": student.backbone, "neck": student.neck, **layers}.items() if not reached(m)
    ] == []
    rows = dict(zip(student.head.rows, student.head.projection.weight.grad.split(list(student.head.rows.values()))))
    blocks = {"seg": {"present", "mask"}, "det": {"box", "conf", "det"}, "cls": {"cls"}}[old[0]]
    assert {name for name, row in rows.items() if row.any()} == blocks


def test_the_teachers_statistics_do_not_move(start: OneHead) -> None:
    before = {k: v.clone() for k, v in start.state_dict().items()}
    distill = in_stage(start)
    for _ in range(3):
        penalty(distill, student_of(start).train())
    assert not start.training
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())


def test_steps_against_the_penalty_bring_the_student_back(start: OneHead) -> None:
    student, distill = student_of(start, 0.1), in_stage(start)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-4)
    values = []
    for _ in range(10):
        loss = torch.stack(list(penalty(distill, student).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


def test_features_alone_compare_no_outputs(start: OneHead) -> None:
    assert set(penalty(in_stage(start, weight=0.0, features=1.0), student_of(start, 0.1))) == {"distill_features"}
