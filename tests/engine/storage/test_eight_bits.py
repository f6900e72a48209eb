"""Weights in eight bits come back near, and a file of them is refused where it makes no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.storage.checkpoint import EIGHT_BITS, load, load_model, load_stored, model_content, save
from engine.storage.eight_bits import LEAST, quantised, restore
from engine.storage.errors import UserError
from models.onehead import ModelConfig, OneHead
from scripts.publish_weights import main as publish

LARGE = "head.projection.weight"


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
    restore(content, weight.numel())
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
    restore(content, 0)
    assert torch.equal(content["model"]["w"], torch.ones(2, 2))


def test_no_classes_no_rows() -> None:
    stored, scales = quantised({"head.class_queries": torch.empty(0, 64)})
    assert stored["head.class_queries"].shape == (0, 64)
    assert not scales


def published(tmp_path: Path) -> tuple[OneHead, Path]:
    """A model, and the file that `publish_weights` makes of it."""
    model = OneHead(ModelConfig(), {"seg": ("a",), "det": ("b",), "cls": ("c",)}, 64)
    extra = {"config": {}, "stage": "cls", "seconds": 1.0, "training_images": []}
    save(tmp_path / "run.pt", {**model_content(model), **extra})
    assert publish([str(tmp_path / "run.pt"), str(tmp_path / "given.pt")]) == 0
    return model, tmp_path / "given.pt"


def test_a_published_network_is_small_comes_back_and_can_be_published_again(tmp_path: Path) -> None:
    model, path = published(tmp_path)
    stored = load_stored(path)
    assert stored["format"] == EIGHT_BITS
    assert stored["model"][LARGE].dtype == torch.int8
    assert path.stat().st_size < 0.4 * (tmp_path / "run.pt").stat().st_size
    back = load_model(path).state_dict()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            assert (back[name] - weight).abs().max() <= 0.01 * weight.abs().max() + 1e-6
    assert publish([str(path), str(tmp_path / "again.pt")]) == 0
    again = load_stored(tmp_path / "again.pt")
    assert all(torch.equal(again["model"][k], v) for k, v in stored["model"].items())


def test_more_weights_than_the_file_has_bytes_are_not_unpacked(tmp_path: Path) -> None:
    _, path = published(tmp_path)
    content = load_stored(path)
    content["model"][LARGE] = torch.zeros(1, dtype=torch.int8).expand(2**20, 2**30)
    content["scales"]["model"][LARGE] = torch.ones(1).expand(2**20)
    save(path, content)
    with pytest.raises(UserError, match=r"given.pt holds weights in eight bits that cannot be read \(scales of"):
        load(path)


ODD: list[Any] = [
    {"model": {"head.class_queries": torch.ones(3)}},
    {"model": {"none": 1}},
    {"classes": {0: torch.ones(1)}},
    {"x": 0},
    1,
]


@pytest.mark.parametrize("scales", ODD)
def test_scales_that_fit_nothing_are_one_sentence(scales: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    model = OneHead(ModelConfig(), {"seg": ("a",), "det": ("b",), "cls": ("c",)}, 64)
    save(path, {**model_content(model), "scales": scales})
    with pytest.raises(UserError, match=r"odd.pt holds weights in eight bits that cannot be read \(.*: publish it"):
        load(path)
