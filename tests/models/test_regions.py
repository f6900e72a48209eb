"""Pooling over boxes is exact."""

from __future__ import annotations

import torch

from models.regions import coverage, pool_boxes


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
