"""Losses whose values are written down by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.criterion import Criterion, LossConfig, dice, varifocal
from models.matcher import Match
from models.targets import VOID
from tests.models.builders import boxes_in_view, object_targets
from tests.models.outputs import LN2, PLAIN, SIZE, fixed_outputs, mask_targets, total

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


def test_the_gradient_of_varifocal_leaves_its_weight_out() -> None:
    logits = torch.tensor([0.0, math.log(3), 0.0, math.log(3)], requires_grad=True)
    varifocal(logits, torch.tensor([0.0, 0.0, 0.8, 0.8])).sum().backward()
    # Weight times p - q. Of nothing, equation 2 would add the weight's own gradient, 2 x 0.75 p^2 (1 - p) x -ln(1 - p).
    expected = [0.75 * 0.5**2 * 0.5, 0.75 * 0.75**2 * 0.75, 0.8 * (0.5 - 0.8), 0.8 * (0.75 - 0.8)]
    assert logits.grad.tolist() == pytest.approx(expected)


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
    losses = criterion.segmentation(logits, targets.masks, criterion.counts(targets)[2])
    assert losses["seg_ce"].item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    # An image without any label counts for nothing.
    masks = torch.cat([masks, torch.full((1, SIZE, SIZE), VOID)])
    targets = mask_targets(masks)
    three = criterion.segmentation(logits[:1].expand(3, -1, -1, -1), targets.masks, criterion.counts(targets)[2])
    for name, value in three.items():
        assert value.item() == pytest.approx(losses[name].item())


def test_logits_under_void_do_not_matter() -> None:
    torch.manual_seed(0)
    masks = torch.randint(0, 5, (1, SIZE, SIZE))
    masks[:, :, :32] = VOID
    targets, criterion = mask_targets(masks), Criterion(PLAIN)
    logits = torch.randn(1, 5, 8, 8, requires_grad=True)
    losses = criterion.segmentation(logits, targets.masks, torch.ones(()))
    total(losses).backward()
    # Column 3 lies under void, too, but interpolation may reach beyond it.
    assert not logits.grad[..., :3].any()
    assert logits.grad[..., 4:].abs().min() > 0
    changed = logits.detach().clone()
    changed[..., :3] += 10 * torch.randn(1, 5, 8, 3)
    for name, value in criterion.segmentation(changed, targets.masks, torch.ones(())).items():
        assert torch.equal(value, losses[name].detach())


@pytest.mark.parametrize("zoom", [1, 2])
def test_masks_are_read_where_the_logits_lie(zoom: int) -> None:
    # Each 8 x 8 block of the mask has the class that its own logit is sure of.
    classes = torch.randint(0, 5, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    classes = classes[:, :1, :].expand(1, 8, 8)
    masks = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    logits = 60.0 * F.one_hot(classes, 5).permute(0, 3, 1, 2).float()
    losses = Criterion(PLAIN).segmentation(logits, masks, torch.ones(()), zoom)
    assert losses["seg_ce"].item() < 1e-6
    shifted = Criterion(PLAIN).segmentation(logits, masks.roll(8, 2), torch.ones(()), zoom)
    assert shifted["seg_ce"].item() > 10


def test_earlier_layers_have_their_loss_at_the_logits_own_resolution() -> None:
    torch.manual_seed(0)
    targets, criterion = mask_targets(torch.randint(0, 5, (1, SIZE, SIZE))), Criterion(LossConfig(aux=0.5))
    outputs = fixed_outputs(1, aux=2)
    losses, one = criterion(outputs, targets), torch.ones(())
    for name in ("seg_ce", "seg_dice"):
        assert torch.equal(losses[name], criterion.segmentation(outputs["pred_masks"], targets.masks, one, 2)[name])
        earlier = [criterion.segmentation(a["pred_masks"], targets.masks, one, 1)[name] for a in outputs["aux_outputs"]]
        torch.testing.assert_close(losses[f"{name}_aux"], 0.5 * torch.stack(earlier).sum())


def test_masks_are_read_in_the_middle_of_cells() -> None:
    coarse = torch.randint(0, 5, (1, SIZE // 8, SIZE // 8), generator=torch.Generator().manual_seed(0))
    masks = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    logits, one = fixed_outputs(1)["pred_masks"], torch.ones(())
    expected = Criterion(PLAIN).segmentation(logits, masks, one)
    for shift in (-1, 1):  # a pixel to either side, the middle of a cell keeps its class
        found = Criterion(PLAIN).segmentation(logits, masks.roll((shift, shift), (1, 2)), one)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_label_smoothing_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0, 0.0, 0.0]])  # probabilities 1/2, 1/6, 1/6, 1/6
    targets = mask_targets(torch.full((1, SIZE, SIZE), VOID))
    targets.classes = torch.tensor([0])
    criterion = Criterion(LossConfig(smoothing=0.1))
    # 0.9 on the label, and 0.1 spread over all four.
    expected = 0.9 * LN2 + 0.1 / 4 * (LN2 + 3 * math.log(6))
    assert criterion.classification(logits, targets, torch.ones(()))["cls_ce"].item() == pytest.approx(expected)


def test_box_terms_by_hand() -> None:
    # Two queries, one object: the first is shifted by half the object's width, the second is alone.
    objects = {
        "pred_logits": torch.zeros(1, 2, 4),
        "pred_boxes": torch.tensor([[[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]),
    }
    targets = object_targets([torch.tensor([[0.5, 0.5, 0.2, 0.2]])], [torch.tensor([2])])
    match = Match(torch.tensor([0]), torch.tensor([0]), targets.boxes[0], targets.labels[0])
    found = Criterion(PLAIN).boxes(objects, match, targets, torch.tensor(2.0))
    iou = 1 / 3  # their hull is their union, so GIoU is the same
    expected = {
        "conf": iou * LN2 + 7 * 0.75 * 0.25 * LN2,  # one class of one query is right, seven are not
        "l1": 0.1,
        "giou": 1 - iou,
    }
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v / 2 for k, v in expected.items()}, rel=1e-5)


def test_boxes_of_a_mask_tell_nothing_of_void_and_of_classes_that_masks_do_not_name() -> None:
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    boxes = torch.tensor([[[0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]]]).expand(2, -1, -1)
    targets = object_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2, size=SIZE)
    targets.masks[1, :, : SIZE // 2] = 0  # the second image has a mask, void on the right
    nothing = torch.zeros(0, dtype=torch.int64)
    criterion = Criterion(PLAIN, mask_named=torch.tensor([True, False, True]))
    outputs = {"pred_logits": logits, "pred_boxes": boxes}
    found = criterion.boxes(outputs, Match(nothing, nothing, torch.zeros(0, 4), nothing), targets, torch.ones(()))
    found["conf"].backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[[True] * 3] * 2, [[True, False, True], [False] * 3]]


def test_perfect_predictions_cost_next_to_nothing() -> None:
    torch.manual_seed(0)
    boxes, labels = boxes_in_view(3), torch.tensor([0, 1, 2])
    targets = object_targets([boxes], [labels], size=SIZE)
    outputs = fixed_outputs(1)
    order = [5, 2, 7]
    outputs["pred_boxes"][0, order] = boxes
    outputs["pred_logits"] = torch.full((1, 8, 3), -12.0)
    outputs["pred_logits"][0, order, labels] = 12.0
    losses = Criterion(PLAIN)(outputs, targets)
    for name in ("conf", "l1", "giou"):
        assert losses[name].item() == pytest.approx(0, abs=1e-4), name
    worse = Criterion(PLAIN)({**outputs, "pred_boxes": outputs["pred_boxes"] + 0.1}, targets)
    assert all(worse[name] > losses[name] + 0.01 for name in ("conf", "l1", "giou"))
