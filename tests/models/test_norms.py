from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.absorption import absorb, absorb_statistics, normed_convolutions
from models.backbones import BACKBONES
from models.norms import LoneBatchNorm2d, freeze_statistics
from models.onehead import ModelConfig, OneHead


def network(backbone: str) -> OneHead:
    torch.manual_seed(0)
    classes = {"seg": ("background", "cat"), "det": ("cat",), "cls": ("cat", "dog")}
    model = OneHead(ModelConfig(backbone=backbone), classes, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 4.0)
    return model.eval()


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_absorbed_statistics_change_nothing_that_is_computed(backbone: str) -> None:
    model = network(backbone)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        absorb_statistics(model)
        after = model(images)
    for name in ("pred_masks", "pred_class", "pred_boxes"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm for _, norm in normed_convolutions(model)] == norms
    for norm in norms:
        assert norm.running_var is not None
        torch.testing.assert_close(norm.running_var + norm.eps, torch.ones(norm.num_features))


def test_what_is_absorbed_stays_to_the_bit_when_absorbed_again() -> None:
    model = network("fast_scnn")
    absorb_statistics(model)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    absorb_statistics(model)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


def test_a_step_of_one_length_moves_a_channel_less_by_its_deviation() -> None:
    """A filter that cancels its input but for 0.01: a small step on it is a large one behind the norm."""

    def shift(absorbed: bool) -> Tensor:
        block = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.BatchNorm2d(1, eps=0.0))
        with torch.no_grad():
            block[0].weight.copy_(torch.tensor([[1.0, 0, -1], [1, 0, -1], [1, 0, -1]]))
            block[1].running_var.fill_(0.01**2)
        block.eval()
        if absorbed:
            absorb(block)
        image = torch.ones(1, 1, 3, 3)
        before = block(image)
        with torch.no_grad():
            block[0].weight += 1e-3
        return (block(image) - before).detach().flatten()

    torch.testing.assert_close(shift(absorbed=False), torch.tensor([0.9]), rtol=1e-3, atol=0)
    torch.testing.assert_close(shift(absorbed=True), torch.tensor([0.009]), rtol=1e-3, atol=0)


def test_frozen_statistics_stay_in_training_and_weights_learn() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).train()
    freeze_statistics(block)
    block(torch.rand(2, 3, 8, 8)).sum().backward()
    assert torch.equal(block[1].running_mean, torch.zeros(4))
    assert block[0].weight.grad.abs().sum() > 0


def test_a_single_value_is_normed_by_the_running_statistics() -> None:
    norm = LoneBatchNorm2d(1, eps=1e-12).train()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    assert norm(torch.full((1, 1, 1, 1), 5.0)).item() == 2.0
    assert norm.training
    assert (norm.running_mean.item(), norm.running_var.item()) == (1.0, 4.0), "one value is no statistic"
    pair = norm(torch.tensor([3.0, 5.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(pair.flatten(), torch.tensor([-1.0, 1.0]))
    assert norm.running_mean.item() == pytest.approx(1.3)  # 0.9 x 1 + 0.1 x 4


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_one_image_with_a_map_of_one_cell_is_learnt_from(backbone: str) -> None:
    classes = {"seg": ("background", "cat"), "det": ("cat",), "cls": ("cat", "dog")}
    model = OneHead(ModelConfig(backbone=backbone, queries=20), classes, 32).train()
    model(torch.rand(1, 3, 32, 32))["pred_class"].sum().backward()
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert sum(float(p.grad.abs().sum()) for p in model.backbone.parameters() if p.grad is not None) > 0
