from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.criterion import Criterion, LossConfig, dice, varifocal
from models.denoising import denoising_boxes
from models.head import Outputs
from models.matcher import Match
from models.targets import NO_CLASS, VOID, Targets
from tests.models.builders import CLASSES, boxes_in_view, images, object_targets, random_objects, random_targets, tiny

SIZE = 64
PLAIN = LossConfig(
    **dict.fromkeys(("conf", "det_class", "l1", "giou", "seg_ce", "seg_dice", "cls_ce"), 1.0), smoothing=0.0
)
LN2 = math.log(2)


def fixed_outputs(batch: int, aux: int = 0, seed: int = 0, size: int = SIZE) -> Outputs:
    """Random outputs as leaves, so that gradients can be read at them."""
    generator = torch.Generator().manual_seed(seed)

    def layer(seed: int) -> Outputs:
        return {
            **random_objects(batch, 8, seed=seed),
            "pred_masks": torch.randn(batch, len(CLASSES["seg"]), size // 8, size // 8, generator=generator),
            "pred_class": torch.randn(batch, len(CLASSES["cls"]), generator=generator),
        }

    outputs = layer(seed)
    outputs["aux_outputs"] = [layer(seed + 1 + i) for i in range(aux)]
    references = torch.rand(20, 4, generator=generator) * 0.5 + 0.25
    outputs["dense"] = {**random_objects(batch, 20, seed=seed + 9), "references": references}
    return outputs


def leaves(outputs: Outputs) -> list[Tensor]:
    """All predictions, with gradient switched on."""
    parts = [outputs, outputs["dense"], *outputs["aux_outputs"], *outputs.get("extra_outputs", [])]
    return [v.requires_grad_() for part in parts for k, v in part.items() if k.startswith("pred_")]


def without_gradient(outputs: Outputs) -> Outputs:
    """A copy with each tensor detached."""

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        return [copy(v) for v in value] if isinstance(value, list) else {k: copy(v) for k, v in value.items()}

    return copy(outputs)


def part(outputs: Any, rows: slice, key: str = "") -> Any:
    """The images `rows` of nested outputs."""
    if isinstance(outputs, Tensor):
        return outputs if key == "references" else outputs[rows]
    if isinstance(outputs, list):
        return [part(v, rows) for v in outputs]
    return {k: part(v, rows, k) for k, v in outputs.items()}


def subset(targets: Targets, rows: slice) -> Targets:
    return Targets(*(getattr(targets, f)[rows] for f in ("boxes", "labels", "has_boxes", "masks", "classes")))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def mask_targets(masks: Tensor) -> Targets:
    n = len(masks)
    return Targets(
        [torch.zeros(0, 4)] * n,
        [torch.zeros(0, dtype=torch.int64)] * n,
        torch.zeros(n, dtype=torch.bool),
        masks,
        torch.full((n,), NO_CLASS),
    )


# --- values by hand ---


def test_varifocal_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3), 0.0, math.log(3)])
    quality = torch.tensor([0.0, 0.0, 0.8, 0.8])
    expected = [
        0.75 * 0.5**2 * LN2,  # nothing there, p = 1/2
        0.75 * 0.75**2 * math.log(4),  # nothing there, p = 3/4
        0.8 * LN2,
        -0.8 * (0.8 * math.log(0.75) + 0.2 * math.log(0.25)),
    ]
    assert varifocal(logits, quality).tolist() == pytest.approx(expected)


def test_varifocal_is_least_where_confidence_equals_quality() -> None:
    logits = torch.linspace(-3, 3, 601)
    loss = varifocal(logits, torch.full_like(logits, 0.7))
    assert logits[loss.argmin()].sigmoid().item() == pytest.approx(0.7, abs=0.01)


def test_dice_by_hand() -> None:
    probs = torch.full((1, 2, 1, 2), 0.5)
    # Overlap 2 * 1/2, sums 1 and 1: (1 + 1) / (1 + 1 + 1) for each of the two classes.
    assert dice(probs, torch.tensor([[[0, 1]]])).item() == pytest.approx(1 / 3)
    # Void takes out a pixel: (1 + 1) / (1/2 + 1 + 1) for class 0, and class 1 is not there.
    assert dice(probs, torch.tensor([[[0, VOID]]])).item() == pytest.approx(0.2)
    assert dice(probs, torch.tensor([[[VOID, VOID]]])).item() == 0
    sure = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert dice(sure, torch.tensor([[[0, 1]]])).item() == 0
    # Each image by itself.
    both = dice(torch.cat([probs, sure]), torch.tensor([[[0, VOID]], [[0, 1]]]))
    assert both.tolist() == pytest.approx([0.2, 0])


def test_segmentation_is_a_mean_per_image() -> None:
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(2, 2, 8, 8)  # 1/4 and 3/4 everywhere
    masks = torch.full((2, SIZE, SIZE), VOID)
    masks[0] = 0
    masks[1, :16, :16] = 1  # far fewer labelled pixels, but as heavy an image
    criterion = Criterion(PLAIN)
    targets = mask_targets(masks)
    losses = criterion.segmentation(logits, targets, criterion.counts(targets)[2])
    assert losses["seg_ce"].item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    # An image without any label counts for nothing.
    masks = torch.cat([masks, torch.full((1, SIZE, SIZE), VOID)])
    targets = mask_targets(masks)
    three = criterion.segmentation(logits[:1].expand(3, -1, -1, -1), targets, criterion.counts(targets)[2])
    for name, value in three.items():
        assert value.item() == pytest.approx(losses[name].item())


def test_logits_under_void_do_not_matter() -> None:
    torch.manual_seed(0)
    masks = torch.randint(0, 5, (1, SIZE, SIZE))
    masks[:, :, :32] = VOID
    targets, criterion = mask_targets(masks), Criterion(PLAIN)
    logits = torch.randn(1, 5, 8, 8, requires_grad=True)
    losses = criterion.segmentation(logits, targets, torch.ones(()))
    total(losses).backward()
    # Column 3 lies under void, too, but interpolation may reach beyond it.
    assert not logits.grad[..., :3].any()
    assert logits.grad[..., 4:].abs().min() > 0
    changed = logits.detach().clone()
    changed[..., :3] += 10 * torch.randn(1, 5, 8, 3)
    for name, value in criterion.segmentation(changed, targets, torch.ones(())).items():
        assert torch.equal(value, losses[name].detach())


@pytest.mark.parametrize("zoom", [1, 2])
def test_masks_are_read_where_the_logits_lie(zoom: int) -> None:
    # Each 8 x 8 block of the mask has the class that its own logit is sure of.
    classes = torch.randint(0, 5, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    classes = classes[:, :1, :].expand(1, 8, 8)
    masks = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    logits = 60.0 * F.one_hot(classes, 5).permute(0, 3, 1, 2).float()
    losses = Criterion(PLAIN).segmentation(logits, mask_targets(masks), torch.ones(()), zoom)
    assert losses["seg_ce"].item() < 1e-6
    shifted = Criterion(PLAIN).segmentation(logits, mask_targets(masks.roll(8, 2)), torch.ones(()), zoom)
    assert shifted["seg_ce"].item() > 10


def test_earlier_layers_are_judged_at_the_logits_own_resolution() -> None:
    torch.manual_seed(0)
    targets, criterion = mask_targets(torch.randint(0, 5, (1, SIZE, SIZE))), Criterion(LossConfig(aux=0.5))
    outputs = fixed_outputs(1, aux=2)
    losses, one = criterion(outputs, targets), torch.ones(())
    for name in ("seg_ce", "seg_dice"):
        assert torch.equal(losses[name], criterion.segmentation(outputs["pred_masks"], targets, one, 2)[name])
        earlier = [criterion.segmentation(a["pred_masks"], targets, one, 1)[name] for a in outputs["aux_outputs"]]
        torch.testing.assert_close(losses[f"{name}_aux"], 0.5 * torch.stack(earlier).sum())


def test_masks_are_read_in_the_middle_of_cells() -> None:
    coarse = torch.randint(0, 5, (1, SIZE // 8, SIZE // 8), generator=torch.Generator().manual_seed(0))
    masks = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    logits, one = fixed_outputs(1)["pred_masks"], torch.ones(())
    expected = Criterion(PLAIN).segmentation(logits, mask_targets(masks), one)
    for shift in (-1, 1):  # a pixel to either side, the middle of a cell keeps its class
        found = Criterion(PLAIN).segmentation(logits, mask_targets(masks.roll((shift, shift), (1, 2))), one)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_label_smoothing_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0, 0.0, 0.0]])  # probabilities 1/2, 1/6, 1/6, 1/6
    targets = mask_targets(torch.full((1, SIZE, SIZE), VOID))
    targets.classes = torch.tensor([0])
    criterion = Criterion(LossConfig(smoothing=0.1))
    # 0.9 on the label, and 0.1 spread over all four.
    expected = 0.9 * LN2 + 0.1 / 4 * (LN2 + 3 * math.log(6))
    assert criterion.classification(logits, targets, torch.ones(()))["cls_ce"].item() == pytest.approx(expected)
    objects = {
        "pred_conf": torch.zeros(1, 1),
        "pred_logits": logits[None],
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]),
    }
    targets = object_targets([torch.tensor([[0.5, 0.5, 0.2, 0.2]])], [torch.tensor([0])])
    match = Match(torch.tensor([0]), torch.tensor([0]), targets.boxes[0], targets.labels[0])
    found = criterion.boxes(objects, match, targets, torch.ones(()))
    assert found["det_class"].item() == pytest.approx(expected)


def test_box_terms_by_hand() -> None:
    # Two queries, one object: the first is shifted by half the object's width, the second is alone.
    objects = {
        "pred_conf": torch.zeros(1, 2),
        "pred_logits": torch.zeros(1, 2, 4),
        "pred_boxes": torch.tensor([[[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]),
    }
    targets = object_targets([torch.tensor([[0.5, 0.5, 0.2, 0.2]])], [torch.tensor([2])])
    match = Match(torch.tensor([0]), torch.tensor([0]), targets.boxes[0], targets.labels[0])
    found = Criterion(PLAIN).boxes(objects, match, targets, torch.tensor(2.0))
    iou = 1 / 3  # their hull is their union, so GIoU is the same
    expected = {
        "conf": iou * LN2 + 0.75 * 0.25 * LN2,
        "det_class": math.log(4),
        "l1": 0.1,
        "giou": 1 - iou,
    }
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v / 2 for k, v in expected.items()}, rel=1e-5)


def test_perfect_predictions_cost_next_to_nothing() -> None:
    torch.manual_seed(0)
    boxes, labels = boxes_in_view(3), torch.tensor([0, 1, 2])
    targets = object_targets([boxes], [labels], size=SIZE)
    outputs = fixed_outputs(1)
    order = [5, 2, 7]
    outputs["pred_boxes"][0, order] = boxes
    outputs["pred_conf"] = torch.full((1, 8), -12.0)
    outputs["pred_conf"][0, order] = 12.0
    outputs["pred_logits"][0, order] = 30.0 * F.one_hot(labels, 3).float()
    losses = Criterion(PLAIN)(outputs, targets)
    for name in ("conf", "det_class", "l1", "giou"):
        assert losses[name].item() == pytest.approx(0, abs=1e-4), name
    worse = Criterion(PLAIN)({**outputs, "pred_boxes": outputs["pred_boxes"] + 0.1}, targets)
    assert all(worse[name] > losses[name] + 0.01 for name in ("conf", "l1", "giou"))


# --- names and weights ---


def test_terms_are_weighted_by_name_and_layer() -> None:
    outputs, targets = fixed_outputs(2), random_targets(["all", "all"], size=SIZE)
    same = {k: outputs[k] for k in ("pred_conf", "pred_logits", "pred_boxes", "pred_masks", "pred_class")}
    start = {k: outputs[k] for k in ("pred_masks", "pred_class")}
    outputs["aux_outputs"] = [start, same, same]
    weights = {"conf": 1.5, "det_class": 2.0, "l1": 3.0, "giou": 4.0, "seg_ce": 5.0, "seg_dice": 6.0, "cls_ce": 7.0}
    plain = Criterion(PLAIN)(outputs, targets)
    found = Criterion(LossConfig(**weights, smoothing=0.0, aux=0.25, dense=0.5))(outputs, targets)
    names = {"conf", "det_class", "l1", "giou"}
    coarse = Criterion(PLAIN).segmentation(outputs["pred_masks"], targets, torch.tensor(2.0), zoom=1)
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
        "pred_conf": torch.zeros(1, 4),
        "pred_logits": torch.zeros(1, 4, 3),
        "pred_boxes": target[None] + torch.tensor([0.01, 0, 0, 0]) * torch.tensor([1.0, 2, 3, 4])[:, None],
        "references": target.expand(4, 4),
    }
    losses = Criterion(PLAIN)(outputs, targets)
    # The IoUs sum to 3.5, so the three best tokens are matched: 0.01, 0.02 and 0.03 away.
    assert losses["l1_dense"].item() == pytest.approx(0.02, rel=1e-4)
    assert losses["det_class_dense"].item() == pytest.approx(math.log(3), rel=1e-4)


def test_groups_count_as_much_as_one_run() -> None:
    outputs, targets = fixed_outputs(2), random_targets(["det", "all"], size=SIZE)
    objects = {k: outputs[k] for k in ("pred_conf", "pred_logits", "pred_boxes")}
    twice = {k: torch.cat([v, v], dim=1) for k, v in objects.items()}
    outputs["extra_outputs"] = [twice, twice, twice]
    config = LossConfig(groups=2, denoise=0, extra=0.5)
    losses = Criterion(config)(outputs, targets)
    for name in ("conf", "det_class", "l1", "giou"):
        assert losses[f"{name}_extra"].item() == pytest.approx(0.5 * losses[name].item(), rel=1e-4)


def test_denoising_queries_answer_for_what_they_were_made_from() -> None:
    targets = random_targets(["det", "det"], size=SIZE)
    boxes, match = denoising_boxes(targets, 8, 1)
    outputs = fixed_outputs(2)
    noise = random_objects(2, 8)
    noise["pred_boxes"] = boxes
    noise["pred_boxes"][match.image, match.query] = match.boxes  # repaired
    # Someone else's box is nearer in class and confidence, which a matcher would be drawn to.
    noise["pred_logits"][match.image, match.query] = -20.0 * F.one_hot(match.labels, 3).float()
    outputs["extra_outputs"] = [noise]
    losses = Criterion(LossConfig(groups=0, denoise=1))(outputs, targets, match)
    assert losses["l1_extra"].item() == pytest.approx(0, abs=1e-6)
    assert losses["giou_extra"].item() == pytest.approx(0, abs=1e-5)
    assert losses["det_class_extra"].item() > 5
    # Beside groups, the denoising run is the last.
    groups = {k: torch.cat([v, v, noise[k]], dim=1) for k, v in random_objects(2, 8, seed=3).items()}
    found = Criterion(LossConfig()).match_extra(groups, targets, match)
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
    owner = {"pred_conf": {0}, "pred_logits": {0}, "pred_boxes": {0}, "pred_masks": {1}, "pred_class": {2}}
    for out in (outputs, outputs["dense"], *outputs["aux_outputs"], *outputs["extra_outputs"]):
        for name, images_taught in owner.items():
            if name in out:
                assert out[name].grad.isfinite().all()
                assert {b for b in range(4) if out[name].grad[b].any()} == images_taught, name
    assert len(inputs) == 5 + 3 + 2 * 5 + 3


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
    [("det", {"conf", "det_class", "l1", "giou"}), ("seg", {"seg_ce", "seg_dice"}), ("cls", {"cls_ce"})],
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
        assert (out["pred_conf"].grad[0] > 0).all()  # a step against the gradient lowers it
        assert not out["pred_conf"].grad[1].any()
        assert not out["pred_boxes"].grad.any()
        assert not out["pred_logits"].grad.any()


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


def test_a_model_that_broke_is_told_by_name() -> None:
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
