"""Pooling over boxes is exact, and the loss on tiles teaches backbone, neck and class rows and nothing else."""

from __future__ import annotations

import pytest
import torch

from models.tiles import NO_TILE, coverage, pool_boxes, tile_logits, tile_loss
from tests.models.builders import images, tiny


def test_coverage_by_hand() -> None:
    low, high = torch.tensor([0.0, 0.25, 0.1, 0.5]), torch.tensor([1.0, 0.75, 0.2, 0.5])
    expected = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0.4, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float32)
    assert torch.allclose(coverage(low, high, 4), expected, atol=1e-6)


def test_pooling_is_the_mean_over_the_box() -> None:
    values = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    boxes = torch.tensor([[[0.5, 0.5, 1, 1], [0.25, 0.75, 0.5, 0.5], [0.375, 0.125, 0.25, 0.25], [0, 0, 0, 0]]])
    pooled = pool_boxes(values, boxes)
    assert pooled.shape == (1, 4, 2)
    assert torch.allclose(pooled[0, 0], values.flatten(2).mean(2)[0])
    assert torch.allclose(pooled[0, 1], values[0, :, 2:, :2].flatten(1).mean(1))
    assert torch.allclose(pooled[0, 2], values[0, :, 0, 1])
    assert (pooled[0, 3] == 0).all()


def test_a_box_across_cells_weighs_them_by_area() -> None:
    values = torch.tensor([[0.0, 8.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    pooled = pool_boxes(values, torch.tensor([[[0.5, 0.25, 0.5, 0.5]]]))
    assert torch.allclose(pooled, torch.tensor([[[4.0]]]))


def test_padding_costs_nothing() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, 2, NO_TILE], [0, NO_TILE, NO_TILE]])
    other = logits.clone()
    other[labels == NO_TILE] = 100.0
    assert torch.equal(tile_loss([logits], labels), tile_loss([other], labels))


def test_the_loss_reaches_backbone_neck_and_object_class_rows_only() -> None:
    model = tiny().train()
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.7, 0.7, 0.5, 0.4]]]).expand(2, -1, -1)
    tile_loss(tile_logits(model.head, model.features(images(2)), boxes), torch.tensor([[0, 1], [2, 0]])).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {n for n, _ in model.named_parameters() if n.startswith(("backbone.", "neck."))}
    # A batch norm takes out a constant, so biases of what it follows are the only weights without effect.
    assert wanted <= reached
    assert reached - wanted == {"head.projection.weight", "head.projection.bias"}
    gradient = model.head.projection.weight.grad
    assert gradient is not None
    rows = model.head.block("det")
    assert gradient[rows].abs().sum() > 0
    gradient[rows] = 0
    assert gradient.abs().sum() == 0


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_stride_is_trained_by_itself(level: int) -> None:
    model = tiny().train()
    whole = torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]).expand(2, -1, -1)
    logits = tile_logits(model.head, model.features(images(2)), whole)
    tile_loss([logits[level]], torch.tensor([[0], [1]])).backward()
    own = model.neck.output[level][0].weight
    others = [model.neck.output[i][0].weight for i in range(3) if i != level]
    assert own.grad is not None
    assert all(w.grad is None for w in others)
