"""Weights in eight bits come back near, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.storage.checkpoint import load, model_content, save
from engine.storage.eight_bits import LEAST, quantised, restore
from engine.storage.errors import UserError
from models.onehead import ModelConfig, OneHead


def test_hand_computed_steps() -> None:
    row = torch.zeros(1, LEAST)
    row[0, :4] = torch.tensor([127.0, -63.5, 0.6, 0.4])
    stored, scales = quantised({"w": row})
    assert stored["w"].dtype == torch.int8
    assert stored["w"][0, :4].tolist() == [127, -64, 1, 0]
    assert scales["w"].tolist() == [1.0]


def test_no_weight_moves_by_more_than_half_a_step_of_its_channel() -> None:
    weight = (
        torch.randn(6, 16, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-4, 1, 6)[:, None, None, None]
    )
    weight[5] = 0
    stored, scales = quantised({"w": weight})
    content: dict[str, Any] = {"model": stored, "scales": {"model": scales}}
    restore(content)
    assert content["model"]["w"].dtype == torch.float32
    off = (content["model"]["w"] - weight).flatten(1).abs().amax(1)
    step = weight.flatten(1).abs().amax(1) / 127
    assert (off <= 0.51 * step).all()
    assert "scales" not in content


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (torch.randn(4), torch.float16),
        (torch.randn(8, 1, 3, 3), torch.float16),
        (torch.tensor(7), torch.int64),
    ],
)
def test_biases_depthwise_filters_and_counts_are_not_quantised(weight: torch.Tensor, dtype: torch.dtype) -> None:
    stored, scales = quantised({"w": weight})
    assert stored["w"].dtype == dtype
    assert not scales


def test_a_content_without_scales_stays_as_it_is() -> None:
    content: dict[str, Any] = {"model": {"w": torch.ones(2, 2)}}
    restore(content)
    assert torch.equal(content["model"]["w"], torch.ones(2, 2))


ODD: list[Any] = [{"model": {"head.class_queries": torch.ones(3)}}, {"model": {"none": 1}}, {"x": 0}, 1]


@pytest.mark.parametrize("scales", ODD)
def test_scales_that_fit_nothing_are_one_sentence(scales: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    model = OneHead(ModelConfig(), {"seg": ("a",), "det": ("b",), "cls": ("c",)}, 64)
    save(path, {**model_content(model), "scales": scales})
    with pytest.raises(UserError, match=r"odd.pt holds weights in eight bits that cannot be read \(.*: publish it"):
        load(path)
