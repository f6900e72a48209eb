"""Both ways to sample maps give the same, and what is expected by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.attention import CrossAttention
from models.sampling import GridMaps, RowTable

Sampled = Callable[[list[Tensor]], GridMaps | RowTable]


def row_table(maps: list[Tensor]) -> RowTable:
    return RowTable(maps, torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1))


both_ways = pytest.mark.parametrize("sampled", [GridMaps, row_table])


def ramps(height: int, width: int, dim: int) -> tuple[Tensor, Tensor]:
    """Maps (1, dim, height, width) that hold their own x and y, between 0 and 1 across the image."""
    x = ((torch.arange(width) + 0.5) / width).expand(1, dim, height, width)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(1, dim, height, width)
    return x.contiguous(), y.contiguous()


@both_ways
def test_sampled_points_start_on_a_ring_that_covers_the_box(sampled: Sampled) -> None:
    heads, dim = 4, 16
    attention = CrossAttention(dim, heads, levels=2, points=4)
    boxes = torch.tensor([[[0.5, 0.4, 0.4, 0.2], [0.3, 0.6, 0.1, 0.3]]])
    query = torch.randn(1, 2, dim)
    maps_x, maps_y = zip(ramps(12, 20, dim), ramps(6, 10, dim))
    x, y = (attention.sample(query, boxes, sampled(list(maps))).unflatten(-1, (heads, -1)) for maps in (maps_x, maps_y))
    cx, cy, w, h = (v[..., None, None] for v in boxes.unbind(-1))
    # Head 0 looks right, 1 down, 2 left, 3 up; radii 0, 1/3, 2/3, 1 of half a side have the mean 1/2.
    right, down = (torch.tensor(v)[:, None] for v in ([1.0, 0, -1, 0], [0.0, 1, 0, -1]))
    torch.testing.assert_close(x, (cx + right * w / 4).expand_as(x))
    torch.testing.assert_close(y, (cy + down * h / 4).expand_as(y))
    assert x.mean((-2, -1)).tolist()[0] == pytest.approx([0.5, 0.3])
    with torch.no_grad():  # all weight on each level's last point: the box's edge
        attention.weights.bias.view(heads, 2, 4)[..., -1] = 100.0
    x = attention.sample(query, boxes, sampled(list(maps_x))).unflatten(-1, (heads, -1))
    torch.testing.assert_close(x, (cx + right * w / 2).expand_as(x))


@pytest.mark.parametrize(("cx", "cy", "value"), [(2.5, 1.5, 1.0), (3.0, 1.5, 0.5), (3.0, 2.0, 0.25), (3.5, 1.5, 0.0)])
@both_ways
def test_a_cells_value_lies_at_its_centre(sampled: Sampled, cx: float, cy: float, value: float) -> None:
    attention = CrossAttention(8, 2, levels=1, points=1)  # a single point: the box's centre
    one_cell = torch.zeros(1, 8, 4, 6)
    one_cell[:, :, 1, 2] = 1
    box = torch.tensor([[[cx / 6, cy / 4, 0.3, 0.3]]])
    found = attention.sample(torch.randn(1, 1, 8), box, sampled([one_cell]))
    torch.testing.assert_close(found, torch.full((1, 1, 8), value))


@both_ways
def test_points_outside_the_image_see_nothing(sampled: Sampled) -> None:
    attention = CrossAttention(8, 2, levels=1, points=1)
    far = torch.tensor([[[1.5, 0.5, 0.1, 0.1], [0.5, -0.5, 0.1, 0.1]]])
    assert not attention.sample(torch.randn(1, 2, 8), far, sampled([torch.ones(1, 8, 4, 4)])).any()


@both_ways
def test_each_head_and_image_samples_its_own_channels(sampled: Sampled) -> None:
    attention = CrossAttention(8, 2, levels=1, points=3)
    values = torch.arange(16.0).view(2, 8, 1, 1).expand(2, 8, 4, 4)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(2, 3, 4)
    found = attention.sample(torch.randn(2, 3, 8), boxes, sampled([values]))
    torch.testing.assert_close(found, torch.arange(16.0).view(2, 1, 8).expand(2, 3, 8))


def test_both_ways_agree_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 12, *size) for size in ((8, 10), (4, 5), (2, 3))]
    points = torch.rand(2, 6, 2, 3, 3, 4) * 1.6 - 0.3  # some of them outside
    weight = torch.rand(2, 6, 3, 3, 4)
    found = []
    for sampled in (GridMaps, row_table):
        leaves = [t.clone().requires_grad_() for t in (points, weight, *maps)]
        mean = sampled(leaves[2:]).mean(leaves[0], leaves[1])
        mean.square().sum().backward()
        found.append([mean, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_rows_of_half_precision_give_means_of_half_precision() -> None:
    points, weight = torch.full((1, 1, 2, 2, 1, 1), 0.5), torch.full((1, 1, 2, 1, 1), 0.5)
    mean = row_table([torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)]).mean(points, weight)
    assert mean.dtype == torch.bfloat16
    assert mean.tolist() == [[[0.5] * 4]]
