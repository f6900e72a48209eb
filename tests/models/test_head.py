"""Structure, outputs and gradients of the network."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from models.criterion import Criterion, LossConfig
from models.denoising import denoising_boxes
from models.head import CONF_PRIOR
from models.onehead import ModelConfig, OneHead, count_parameters
from tests.models.builders import CLASSES, SIZE, images, random_targets, tensors, tiny

VOC = {"det": [f"d{i}" for i in range(20)], "seg": [f"s{i}" for i in range(21)], "cls": [f"c{i}" for i in range(10)]}


@pytest.fixture(scope="module")
def model() -> OneHead:
    return tiny()


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- size and structure ---


def test_default_model_has_less_than_five_million_parameters() -> None:
    model = OneHead(ModelConfig(), VOC)
    assert len(model.head.layers) == 3
    assert count_parameters(model) < 5_000_000


def test_nothing_is_learnt_after_the_neck_but_layers_projection_and_class_queries(model: OneHead) -> None:
    assert [name for name, _ in model.named_children()] == ["backbone", "neck", "head"]
    assert [name for name, _ in model.named_parameters(recurse=False)] == []
    assert [name for name, _ in model.head.named_children()] == ["layers", "projection"]
    assert [name for name, _ in model.head.named_parameters(recurse=False)] == ["class_queries"]
    assert type(model.head.projection) is nn.Linear
    assert {name.split(".")[2] for name, _ in model.head.layers.named_parameters(prefix="layers")} == {
        "norms",
        "scales",
        "self_attention",
        "cross_attention",
        "feed_forward",
    }


def test_projection_is_one_linear_read_in_row_blocks(model: OneHead) -> None:
    head, dim = model.head, model.config.dim
    sizes = {"box": 4, "conf": 1, "det": 3, "cls": 4, "present": 5, "mask": dim}
    assert head.projection.out_features == sum(sizes.values())
    tokens = torch.randn(2, 5, dim)
    everything = head.projection(F.layer_norm(tokens, (dim,))).split(list(sizes.values()), dim=-1)
    for (name, size), expected in zip(sizes.items(), everything):
        (found,) = head.project(tokens, name)
        assert found.shape == (2, 5, size)
        torch.testing.assert_close(found, expected)
    for found, expected in zip(head.project(tokens, "box", "conf", "det"), everything):
        torch.testing.assert_close(found, expected)


def test_untrained_confidence_is_the_prior() -> None:
    torch.manual_seed(0)
    model = OneHead(ModelConfig(), VOC)
    assert model.head.project(torch.zeros(1, model.config.dim), "conf")[0].item() == pytest.approx(CONF_PRIOR)
    assert torch.sigmoid(torch.tensor(CONF_PRIOR)).item() == pytest.approx(0.01, abs=1e-4)


def test_classes_have_their_own_sigmoids_above_the_shared_confidence() -> None:
    head, tokens = tiny().head, torch.randn(1, 2, tiny().config.dim)
    conf, classes = head.project(tokens, "conf", "det")
    logits = head.read_objects(tokens, torch.full((2, 4), 0.5))["pred_logits"]
    assert logits.shape == (1, 2, 3)
    torch.testing.assert_close(logits, torch.stack([conf[..., 0] + classes[..., c] for c in range(3)], dim=-1))


# --- one forward pass gives everything ---


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (96, 128)])
def test_all_three_outputs_in_one_forward(layers: int, training: bool, size: tuple[int, int]) -> None:
    model = tiny(layers=layers).train(training)
    height, width = size
    outputs = model(images(2, height, width))
    n, locations = model.config.queries, sum(height // s * (width // s) for s in (8, 16, 32))
    shapes = {
        "pred_logits": (2, n, 3),
        "pred_boxes": (2, n, 4),
        "pred_masks": (2, 5, height // 8, width // 8),
        "pred_class": (2, 4),
    }
    assert {k: tuple(outputs[k].shape) for k in shapes} == shapes
    assert len(outputs["aux_outputs"]) == layers
    assert set(outputs["aux_outputs"][0]) == {"pred_masks", "pred_class"}  # before any layer there are no queries
    for aux in outputs["aux_outputs"]:
        assert {k: tuple(v.shape) for k, v in aux.items()} == {k: shapes[k] for k in aux}
    assert all(set(aux) == set(shapes) for aux in outputs["aux_outputs"][1:])
    assert tuple(outputs["dense"]["pred_logits"].shape) == (2, locations, 3)
    assert tuple(outputs["dense"]["pred_boxes"].shape) == (2, locations, 4)
    assert tuple(outputs["dense"]["references"].shape) == (locations, 4)
    assert "extra_outputs" not in outputs
    assert all(t.isfinite().all() for t in tensors(outputs).values())


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_other_numbers_of_layers_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match=f"a head has 2 or 3 layers, not {layers}: set model.layers to 2 or 3"):
        OneHead(ModelConfig(layers=layers), CLASSES)


@pytest.mark.parametrize("size", [(96, 100), (90, 96)])
def test_sides_that_do_not_fit_are_refused(model: OneHead, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 32, not \({size[0]}, {size[1]}\): resize or pad"):
        model(images(1, *size))


def test_a_width_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.dim 36 must be a multiple of 8 and of model.heads 6"):
        OneHead(ModelConfig(dim=36, heads=6), CLASSES)


def test_images_are_normalised_inside(model: OneHead) -> None:
    x = images(2)
    seen: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    handle.remove()
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    expected = (x - mean) / std
    torch.testing.assert_close(seen[0], expected)
    assert not {"mean", "std"} & set(model.state_dict())  # constants do not belong to the weights


@torch.no_grad()
def test_an_images_outputs_do_not_depend_on_its_neighbours(model: OneHead) -> None:
    x = images(4, seed=3)
    together = tensors(model(x))
    for i in range(4):
        for name, value in tensors(model(x[i : i + 1])).items():
            expected = together[name] if name == "dense.references" else together[name][i : i + 1]
            torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# --- gradients ---


def test_every_parameter_learns_from_the_full_loss(model: OneHead) -> None:
    # In eval mode: a batch norm in training takes out a constant shift, so that the bias before it has no effect.
    model = copy.deepcopy(model)
    targets = random_targets(["all", "all"])
    total(Criterion(LossConfig())(model(images(2)), targets)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    for block, rows in zip(model.head.rows, model.head.projection.weight.grad.split(list(model.head.rows.values()))):
        assert rows.any(dim=1).all(), f"a row of the block {block} learns nothing"


@pytest.mark.parametrize(
    ("task", "learning"),
    [("seg", {"present", "mask"}), ("cls", {"cls"}), ("det", {"box", "conf", "det"})],
)
def test_a_task_teaches_only_its_own_rows(model: OneHead, task: str, learning: set[str]) -> None:
    model = copy.deepcopy(model).train()
    criterion = Criterion(LossConfig(groups=2, denoise=1))
    targets = random_targets([task, task])
    boxes, match = denoising_boxes(targets, model.config.queries, 1)
    total(criterion(model(images(2), groups=2, denoise=boxes), targets, match)).backward()
    linear, sizes = model.head.projection, list(model.head.rows.values())
    found = {
        name
        for name, weight, bias in zip(model.head.rows, linear.weight.grad.split(sizes), linear.bias.grad.split(sizes))
        if weight.any() or bias.any()
    }
    assert found == learning
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    assert all(g.isfinite().all() for g in gradients(model).values())


@torch.no_grad()
def test_what_the_class_token_expects_moves_a_class_everywhere_alike() -> None:
    model = tiny()
    before = model.head(model.features(images(2)))["pred_masks"]
    row = model.head.block("present").start + 2
    model.head.projection.bias[row] += 1.5
    moved = model.head(model.features(images(2)))["pred_masks"] - before
    torch.testing.assert_close(moved[:, 2], torch.full_like(moved[:, 2], 1.5))
    assert not moved[:, [0, 1, 3, 4]].any()
    model.head.projection.weight[row] += torch.randn(model.config.dim)
    other = model.head(model.features(images(2)))["pred_masks"][:, 2] - before[:, 2]
    assert other.flatten(1).std(1).max() < 1e-5  # one number an image ...
    assert (other[0] - other[1]).abs().min() > 1e-4  # ... that depends on the image


# --- rows taken over ---


def test_a_head_takes_over_what_does_not_depend_on_classes() -> None:
    theirs, own = tiny(seed=3), tiny(seed=4)
    fresh = own.head.projection.weight.clone()
    assert own.head.adopt_rows(theirs.head, ["det"]) == ["seg", "cls"]
    for block, taken in (
        ("box", True),
        ("conf", True),
        ("det", True),
        ("mask", True),
        ("present", False),
        ("cls", False),
    ):
        rows = own.head.block(block)
        expected = theirs.head.projection.weight if taken else fresh
        assert torch.equal(own.head.projection.weight[rows], expected[rows]), block
    learnt, drawn = theirs.head.class_queries, own.head.class_queries
    assert (drawn.mean() - learnt.mean()).abs() < 4 * learnt.std() / learnt.numel() ** 0.5
    assert not torch.equal(drawn, learnt)
    assert own.head.adopt_rows(theirs.head, ["seg", "det", "cls"]) == []
    assert torch.equal(own.head.class_queries, learnt)
