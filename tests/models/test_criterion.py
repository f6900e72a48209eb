"""Which terms there are, what they are divided by, and whom they teach."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.criterion import Criterion, LossConfig
from models.denoising import denoising_boxes
from models.matcher import Match
from tests.models.builders import images, object_targets, random_objects, random_targets, tiny
from tests.models.outputs import PLAIN, SIZE, fixed_outputs, leaves, part, subset, total, without_gradient

# --- names and weights ---


def test_terms_are_weighted_by_name_and_layer() -> None:
    outputs, targets = fixed_outputs(2), random_targets(["all", "all"], size=SIZE)
    same = {k: outputs[k] for k in ("pred_logits", "pred_boxes", "pred_masks", "pred_class")}
    start = {k: outputs[k] for k in ("pred_masks", "pred_class")}
    outputs["aux_outputs"] = [start, same, same]
    weights = {"conf": 1.5, "l1": 3.0, "giou": 4.0, "seg_ce": 5.0, "seg_dice": 6.0, "cls_ce": 7.0}
    plain = Criterion(PLAIN)(outputs, targets)
    found = Criterion(LossConfig(**weights, smoothing=0.0, aux=0.25, dense=0.5))(outputs, targets)
    names = {"conf", "l1", "giou"}
    coarse = Criterion(PLAIN).segmentation(outputs["pred_masks"], targets.masks, torch.tensor(2.0), zoom=1)
    assert set(found) == {*weights, *(f"{n}_aux" for n in weights), *(f"{n}_dense" for n in names)}
    for name, weight in weights.items():
        assert found[name].item() == pytest.approx(weight * plain[name].item(), rel=1e-5)
        layers = 2 if name in names else 3  # before any layer there are no object queries
        one_layer = weight * coarse[name].item() if name in coarse else found[name].item()
        assert found[f"{name}_aux"].item() == pytest.approx(0.25 * layers * one_layer, rel=1e-5)
        if name in names:
            assert found[f"{name}_dense"].item() == pytest.approx(
                0.5 * weight * plain[f"{name}_dense"].item(), rel=1e-5
            )


def test_dense_loss_is_a_mean_over_its_pairs() -> None:
    target = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    targets = object_targets([target], [torch.tensor([0])], size=SIZE)
    outputs = fixed_outputs(1)
    outputs["dense"] = {
        "pred_logits": torch.zeros(1, 4, 3),
        "pred_boxes": target[None] + torch.tensor([0.01, 0, 0, 0]) * torch.tensor([1.0, 2, 3, 4])[:, None],
        "references": target.expand(4, 4),
    }
    losses = Criterion(PLAIN)(outputs, targets)
    # The IoUs sum to 3.5, so the three best tokens are matched: 0.01, 0.02 and 0.03 away.
    assert losses["l1_dense"].item() == pytest.approx(0.02, rel=1e-4)


def test_groups_count_as_much_as_one_run() -> None:
    outputs, targets = fixed_outputs(2), random_targets(["det", "all"], size=SIZE)
    objects = {k: outputs[k] for k in ("pred_logits", "pred_boxes")}
    twice = {k: torch.cat([v, v], dim=1) for k, v in objects.items()}
    outputs["extra_outputs"] = [twice, twice, twice]
    config = LossConfig(groups=2, denoise=0, extra=0.5)
    losses = Criterion(config)(outputs, targets)
    for name in ("conf", "l1", "giou"):
        assert losses[f"{name}_extra"].item() == pytest.approx(0.5 * losses[name].item(), rel=1e-4)


def test_denoising_queries_answer_for_what_they_were_made_from() -> None:
    targets = random_targets(["det", "det"], size=SIZE)
    boxes, match = denoising_boxes(targets, 8, 1)
    outputs = fixed_outputs(2)
    noise = random_objects(2, 8)
    noise["pred_boxes"] = boxes
    noise["pred_boxes"][match.image, match.query] = match.boxes  # repaired
    # Other queries are surer of the class, which a matcher would be drawn to.
    noise["pred_logits"][match.image, match.query] = -20.0 * F.one_hot(match.labels, 3).float()
    outputs["extra_outputs"] = [noise]
    losses = Criterion(LossConfig())(outputs, targets, match)
    assert losses["l1_extra"].item() == pytest.approx(0, abs=1e-6)
    assert losses["giou_extra"].item() == pytest.approx(0, abs=1e-5)
    assert losses["conf_extra"].item() > 5
    # Beside groups, the denoising run is the last.
    groups = {k: torch.cat([v, v, noise[k]], dim=1) for k, v in random_objects(2, 8, seed=3).items()}
    outputs["extra_outputs"] = [groups]
    _, (found,) = Criterion(LossConfig(groups=2)).match(outputs, targets, match)
    late = found.query >= 16
    assert torch.equal(found.query[late], match.query + 16)
    assert torch.equal(found.boxes[late], match.boxes)
    assert (late.sum(), len(late)) == (6, 18)


# --- what is not annotated costs nothing ---


def test_a_batch_without_annotation_has_no_terms() -> None:
    targets = random_targets([None, None], size=SIZE)
    outputs = fixed_outputs(2, aux=2)
    _, match = denoising_boxes(targets, 8, 1)
    outputs["extra_outputs"] = [random_objects(2, 24)]
    assert Criterion(LossConfig())(outputs, targets, match) == {}


def test_images_without_annotation_get_no_gradient() -> None:
    targets = random_targets(["det", "seg", "cls", None], size=SIZE)
    outputs = fixed_outputs(4, aux=2)
    _, match = denoising_boxes(targets, 8, 1)
    outputs["extra_outputs"] = [random_objects(4, 24)]
    inputs = leaves(outputs)
    total(Criterion(LossConfig())(outputs, targets, match)).backward()
    owner = {"pred_logits": {0}, "pred_boxes": {0}, "pred_masks": {1}, "pred_class": {2}}
    for out in (outputs, outputs["dense"], *outputs["aux_outputs"], *outputs["extra_outputs"]):
        for name, images_taught in owner.items():
            if name in out:
                assert out[name].grad.isfinite().all()
                assert {b for b in range(4) if out[name].grad[b].any()} == images_taught, name
    assert len(inputs) == 4 + 2 + 2 * 4 + 2


def test_annotated_images_cost_finite_losses_where_a_process_has_none() -> None:
    # The other process has what is missing here: the means are not zero, so the terms are there and add nothing.
    outputs = fixed_outputs(2, aux=1)
    inputs = leaves(outputs)
    losses = Criterion(LossConfig(), lambda count: count + 0.5)(outputs, random_targets([None, None], size=SIZE))
    assert {"conf", "l1", "seg_ce", "seg_dice", "cls_ce", "conf_dense"} <= set(losses)
    assert {v.item() for v in losses.values()} == {0.0}
    total(losses).backward()
    assert not any(t.grad.any() for t in inputs if t.grad is not None)


@pytest.mark.parametrize(
    ("task", "terms"),
    [("det", {"conf", "l1", "giou"}), ("seg", {"seg_ce", "seg_dice"}), ("cls", {"cls_ce"})],
)
def test_an_annotation_costs_its_own_terms_only(task: str, terms: set[str]) -> None:
    losses = Criterion(LossConfig())(fixed_outputs(2, aux=1), random_targets([task, None], size=SIZE))
    assert {name.removesuffix("_aux").removesuffix("_dense") for name in losses} == terms
    assert all(value > 0 for value in losses.values())


def test_no_objects_means_low_confidence_only_where_boxes_are_annotated() -> None:
    targets = random_targets([None, None], size=SIZE)
    targets.has_boxes = torch.tensor([True, False])
    outputs = fixed_outputs(2, aux=1)
    leaves(outputs)
    total(Criterion(LossConfig())(outputs, targets)).backward()
    for out in (outputs, outputs["dense"], *outputs["aux_outputs"]):
        assert (out["pred_logits"].grad[0] > 0).all()  # a step against the gradient lowers it
        assert not out["pred_logits"].grad[1].any()
        assert not out["pred_boxes"].grad.any()


# --- several processes, precision, other faults ---


@pytest.mark.parametrize(
    "tasks", [["all", "det", None, "seg", "cls", "all"], ["det", "det", "seg", "cls", None, "seg"]]
)
def test_two_processes_give_the_gradient_of_one(tasks: list[str | None]) -> None:
    targets = random_targets(tasks, objects=4, size=SIZE, seed=2)
    whole = fixed_outputs(6, aux=2)
    _, match = denoising_boxes(targets, 8, 1)
    whole["extra_outputs"] = [random_objects(6, 24, seed=7)]
    halves = [slice(0, 2), slice(2, 6)]
    parts = [part(without_gradient(whole), rows) for rows in halves]
    matches = []
    for rows in halves:
        mine = (match.image >= rows.start) & (match.image < rows.stop)
        matches.append(Match(match.image[mine] - rows.start, match.query[mine], match.boxes[mine], match.labels[mine]))
    inputs = leaves(whole)
    expected = Criterion(LossConfig())(whole, targets, match)
    total(expected).backward()

    barrier, sent = Barrier(2, timeout=20), [torch.zeros(()), torch.zeros(())]

    def process(rank: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        def mean_count(count: Tensor) -> Tensor:
            sent[rank] = count
            barrier.wait()  # breaks if the other process asks for fewer means
            mean = (sent[0] + sent[1]) / 2
            barrier.wait()
            return mean

        found = leaves(parts[rank])
        losses = Criterion(LossConfig(), mean_count)(parts[rank], subset(targets, halves[rank]), matches[rank])
        total(losses).backward()
        return losses, [torch.zeros_like(t) if t.grad is None else t.grad for t in found]

    with ThreadPoolExecutor(2) as pool:
        (losses_a, gradients_a), (losses_b, gradients_b) = pool.map(process, range(2))
    assert expected.keys() == losses_a.keys() == losses_b.keys()
    for name, value in expected.items():
        assert value.item() == pytest.approx((losses_a[name] + losses_b[name]).item() / 2, rel=1e-4, abs=1e-6), name
    for tensor, a, b in zip(inputs, gradients_a, gradients_b):
        torch.testing.assert_close(torch.cat([a, b]) / 2, tensor.grad, atol=1e-7, rtol=1e-4)


def test_losses_are_float32_whatever_the_network_gave() -> None:
    targets = random_targets(["all", "all"], size=SIZE)
    outputs = fixed_outputs(2, aux=2)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        return (
            [cast(v, dtype) for v in value]
            if isinstance(value, list)
            else {k: cast(v, dtype) for k, v in value.items()}
        )

    half = cast(outputs, torch.bfloat16)
    half["dense"]["references"] = outputs["dense"]["references"]
    again = cast(half, torch.float32)
    again["dense"]["references"] = outputs["dense"]["references"]
    found, expected = Criterion(LossConfig())(half, targets), Criterion(LossConfig())(again, targets)
    assert {v.dtype for v in found.values()} == {torch.float32}
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_a_model_that_diverged_is_named() -> None:
    outputs = fixed_outputs(1)
    outputs["dense"]["pred_logits"][0, 3, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="pred_logits is not finite"):
        Criterion(LossConfig())(outputs, random_targets(["det"], size=SIZE))


def test_steps_along_the_gradient_lower_the_loss_of_a_model() -> None:
    model = tiny().train()
    x, targets = images(4), random_targets(["all"] * 4)
    criterion, optimizer = Criterion(LossConfig()), torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(12):
        losses = criterion(model(x), targets)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        # Objectness aims at the boxes' own IoU, which moves: better boxes alone raise that term.
        values.append(sum(v.item() for k, v in losses.items() if not k.startswith("conf")))
    assert values[-1] < 0.9 * values[0]
