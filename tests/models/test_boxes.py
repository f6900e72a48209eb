from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from models.attention import DecoderLayer, box_encoding
from models.boxes import MAX_LOG_SCALE, constant, grid_references, pair_giou, pair_iou, refine, to_xyxy
from models.sampling import GridMaps
from tests.models.builders import boxes_in_view


def test_a_constant_is_float32_where_another_tensor_lies_and_nothing_is_copied_there() -> None:
    here, there = constant(torch.zeros(1, dtype=torch.int64), 3, 0.1), constant(torch.zeros(2, device="meta"), 1.0)
    assert torch.equal(here, torch.tensor([3, 0.1]))
    assert here.dtype == there.dtype == torch.float32
    assert there.device.type == "meta"


def test_to_xyxy_by_hand() -> None:
    assert to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])


def test_refine_with_no_step_is_the_identity() -> None:
    boxes = boxes_in_view(20)
    assert torch.equal(refine(torch.zeros(20, 4), boxes), boxes)


def test_refine_steps_by_hand() -> None:
    reference = torch.tensor([0.5, 0.4, 0.2, 0.1])
    # Half its width to the right, two heights up, twice as wide, half as high.
    delta = torch.tensor([0.5, -2.0, math.log(2), -math.log(2)])
    assert refine(delta, reference).tolist() == pytest.approx([0.6, 0.2, 0.4, 0.05])


def test_refine_bounds_the_size_step_but_not_the_centre() -> None:
    reference = torch.tensor([0.5, 0.5, 0.1, 0.1])
    found = refine(torch.tensor([30.0, 0.0, 1000.0, -1000.0]), reference)
    assert found.isfinite().all()
    factor = math.exp(MAX_LOG_SCALE)
    assert found.tolist() == pytest.approx([3.5, 0.5, 0.1 * factor, 0.1 / factor], rel=1e-5)


def test_refine_takes_one_set_of_references_for_a_whole_batch() -> None:
    reference, delta = boxes_in_view(5), torch.randn(2, 5, 4)
    assert torch.equal(refine(delta, reference)[1], refine(delta[1], reference))


def test_grid_references_by_hand() -> None:
    found = grid_references(2, 3, 4.0, torch.device("cpu"))
    centres = [(1 / 6, 0.25), (0.5, 0.25), (5 / 6, 0.25), (1 / 6, 0.75), (0.5, 0.75), (5 / 6, 0.75)]
    expected = torch.tensor([[x, y, 4 / 3, 2.0] for x, y in centres])
    torch.testing.assert_close(found, expected)


def test_pair_iou_is_the_diagonal_of_box_iou() -> None:
    torch.manual_seed(0)
    a, b = boxes_in_view(50), boxes_in_view(50)
    b[:10] = a[:10]
    expected = box_iou(to_xyxy(a), to_xyxy(b)).diagonal()
    torch.testing.assert_close(pair_iou(a, b), expected, atol=1e-5, rtol=1e-5)
    assert (expected > 0).sum() > 12  # neither all apart
    assert (expected == 0).any()  # nor all together


def test_pair_giou_broadcasts_to_generalized_box_iou() -> None:
    a, b = boxes_in_view(7), boxes_in_view(5, torch.Generator().manual_seed(1))
    expected = generalized_box_iou(to_xyxy(a), to_xyxy(b))
    torch.testing.assert_close(pair_giou(a[:, None], b), expected, atol=1e-5, rtol=1e-5)


def test_pair_iou_of_boxes_without_area_is_zero() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2], [0.5, 0.5, 0.0, 0.0]])
    assert pair_iou(boxes[[1, 2, 1, 2]], boxes[[0, 0, 1, 2]]).tolist() == [0, 0, 0, 0]
    assert pair_iou(boxes[:0], boxes[:0]).shape == (0,)


def test_box_encodings_of_two_boxes_differ_and_are_bounded() -> None:
    torch.manual_seed(0)
    boxes = boxes_in_view(40)
    encoding = box_encoding(boxes, 64)
    assert encoding.shape == (40, 64)
    assert encoding.abs().max() <= 1
    distance = torch.cdist(encoding, encoding) + 10 * torch.eye(40)
    assert distance.min() > 0.1
    rounded = boxes.to(torch.bfloat16)  # is read in float32: waves are steep, and bfloat16 has 8 bits
    assert box_encoding(rounded, 64).dtype == torch.float32
    assert torch.equal(box_encoding(rounded, 64), box_encoding(rounded.float(), 64))


def test_an_untrained_layer_nearly_passes_its_tokens_through() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(32, 2, 64, levels=2, points=4)
    tokens, memory = torch.randn(2, 5, 32), torch.randn(2, 20, 32)
    maps = GridMaps([torch.randn(2, 32, 8, 8), torch.randn(2, 32, 4, 4)])
    boxes = boxes_in_view(10).view(2, 5, 4)
    out = layer(tokens, boxes, memory, torch.randn(20, 32), maps)
    change = (out - tokens).norm() / tokens.norm()
    assert 0 < change < 0.3


def test_runs_of_one_layer_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(32, 2, 64, levels=1, points=4)
    tokens, boxes = torch.randn(2, 6, 32), boxes_in_view(12).view(2, 6, 4)
    rest = (torch.randn(2, 20, 32), torch.randn(20, 32), GridMaps([torch.randn(2, 32, 4, 4)]))
    together = layer(tokens, boxes, *rest, groups=2)
    apart = [layer(tokens[:, s], boxes[:, s], *rest) for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))
    changed = tokens.clone()
    changed[:, 3:] = torch.randn(2, 3, 32)
    assert torch.equal(layer(changed, boxes, *rest, groups=2)[:, :3], together[:, :3])
    assert not torch.allclose(layer(changed, boxes, *rest)[:, :3], layer(tokens, boxes, *rest)[:, :3])
