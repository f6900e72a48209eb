from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from models.boxes import to_xyxy
from models.postprocess import class_masks, detections, overlap_with_surer
from tests.models.builders import images, random_objects, tiny


def test_all_pairs_of_query_and_class_are_ranked() -> None:
    outputs = {
        "pred_logits": torch.tensor([[[0.6, 0.2], [0.05, 0.45]]]).logit(),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]]),
    }
    (found,) = detections(outputs)
    assert found["scores"].tolist() == pytest.approx([0.6, 0.45, 0.2, 0.05])
    assert found["labels"].tolist() == [0, 1, 1, 0]
    assert found["boxes"][:, 0].tolist() == pytest.approx([0.5, 0.3, 0.5, 0.3])
    (best,) = detections(outputs, top_k=1)
    assert best["scores"].tolist() == pytest.approx([0.6])
    assert {k: tuple(v.shape) for k, v in best.items()} == {"scores": (1,), "labels": (1,), "boxes": (1, 4)}


def test_an_object_found_twice_counts_once_a_class() -> None:
    # Of three queries the first two overlap by 0.8 / 1.2 = 2/3, the third stands apart.
    outputs = {
        "pred_logits": torch.tensor([[[0.72, 0.08], [0.3, 0.2], [0.4, 1e-9]]]).logit(),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.54, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]]),
    }
    overlap = overlap_with_surer(outputs["pred_logits"], to_xyxy(outputs["pred_boxes"]))
    assert overlap.flatten().tolist() == pytest.approx([0, 2 / 3, 2 / 3, 0, 0, 0], abs=1e-5)
    (found,) = detections(outputs, top_k=4)
    # The second query is less sure of class 0, but surer of class 1, where the first gives way.
    assert found["scores"].tolist() == pytest.approx([0.72, 0.4, 0.2, 0.003])
    assert found["labels"].tolist() == [0, 0, 1, 0]
    (both,) = detections(outputs, top_k=4, same=1)
    assert both["scores"].tolist() == pytest.approx([0.72, 0.4, 0.3, 0.2])


def test_each_image_is_ranked_by_itself() -> None:
    outputs = random_objects(3, 40, classes=5)
    found = detections(outputs)
    assert len(found) == 3
    for b, image in enumerate(found):
        assert image["scores"].shape == (100,)
        assert image["scores"].diff().le(0).all()
        assert image["scores"].min() >= 0
        assert image["scores"].max() <= 1
        assert image["labels"].min() >= 0
        assert image["labels"].max() <= 4
        (alone,) = detections({k: v[b : b + 1] for k, v in outputs.items()})
        torch.testing.assert_close(alone, image)


def test_confidences_of_one_query_do_not_depend_on_its_number() -> None:
    outputs = random_objects(1, 10)
    turned = {k: v.flip(1) for k, v in outputs.items()}
    (a,), (b,) = detections(outputs), detections(turned)
    assert torch.equal(a["labels"], b["labels"])
    for k in ("scores", "boxes"):  # vector code and its remainder round differently on some processors
        torch.testing.assert_close(a[k], b[k], atol=2e-7, rtol=0)


def test_of_equally_sure_queries_the_first_counts_wherever_they_stand() -> None:
    # 13 is no multiple of a vector's length: some sigmoids are computed by vector code, others by its remainder.
    logits = torch.full((1, 13, 1), 0.7123)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 13, 4)
    assert overlap_with_surer(logits, to_xyxy(boxes)).flatten().tolist() == pytest.approx([0.0] + 12 * [1.0])
    (found,) = detections({"pred_logits": logits, "pred_boxes": boxes})
    expected = torch.full((13,), 0.01 / (1 + math.exp(-0.7123)))
    expected[0] *= 100
    torch.testing.assert_close(found["scores"], expected, atol=2e-7, rtol=0)


def test_equally_sure_queries_apart_from_each_other_both_count() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.1, 0.1]]])
    (found,) = detections({"pred_logits": torch.zeros(1, 2, 1), "pred_boxes": boxes})
    assert found["scores"].tolist() == [0.5, 0.5]


def test_boxes_are_cut_off_at_the_edge() -> None:
    boxes = torch.tensor([[0.1, 0.5, 0.4, 0.2], [0.9, 0.95, 0.4, 0.2], [1.5, 0.5, 0.2, 2.0], [0.4, 0.6, 0.2, 0.2]])
    conf = torch.arange(4, 0, -1).float()[None]  # so that they come out in this order
    (found,) = detections({"pred_logits": conf[..., None], "pred_boxes": boxes[None]})
    expected = [[0.0, 0.4, 0.3, 0.6], [0.7, 0.85, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], [0.3, 0.5, 0.5, 0.7]]
    torch.testing.assert_close(to_xyxy(found["boxes"]), torch.tensor(expected), atol=1e-6, rtol=0)


def test_half_precision_is_read_in_float32() -> None:
    outputs = {k: v.bfloat16() for k, v in random_objects(2, 8).items()}
    found = detections(outputs)
    expected = detections({k: v.float() for k, v in outputs.items()})
    for a, b in zip(found, expected):
        assert a["scores"].dtype == a["boxes"].dtype == torch.float32
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_model_s_outputs_are_taken_as_they_are_and_without_gradient() -> None:
    found = detections(tiny()(images(2)), top_k=7)
    assert [tuple(f["boxes"].shape) for f in found] == [(7, 4), (7, 4)]
    assert not any(f["scores"].requires_grad for f in found)


# --- masks ---


def upsampled(logits: torch.Tensor, scale: int) -> torch.Tensor:
    return F.interpolate(logits, scale_factor=scale, mode="bilinear").argmax(1)


@pytest.mark.parametrize("scale", [2, 8])
@pytest.mark.parametrize("smooth", [1, 4])
def test_class_masks_are_those_of_upsampling_everything(scale: int, smooth: int) -> None:
    coarse = torch.randn(3, 6, 5, 7, generator=torch.Generator().manual_seed(scale))
    logits = F.interpolate(coarse, scale_factor=smooth, mode="nearest")
    assert torch.equal(class_masks(logits, scale), upsampled(logits, scale))


def test_a_class_that_is_nowhere_best_can_win_between_cells() -> None:
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 3.0]], [[2.0, 2.0]]]])
    assert class_masks(logits, 4)[0, 0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


def test_one_class_everywhere_needs_no_interpolation() -> None:
    logits = torch.zeros(2, 4, 3, 3)
    logits[0, 2], logits[1, 1] = 1, 1
    masks = class_masks(logits, 8)
    assert masks.shape == (2, 24, 24)
    assert [m.unique().tolist() for m in masks] == [[2], [1]]
