"""Recalling what the pretrained backbone calls any region."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from continual import Stage, Step
from continual.recall import Recall, random_boxes
from engine.settings.config import Config
from engine.training.start import pretrained_backbone
from models.boxes import to_xyxy
from models.onehead import ModelConfig, OneHead
from models.pretrained_backbone import ClassifierReadout, PooledReadout, PretrainedBackbone
from models.public_teacher import PublicTeacher
from tests.models.builders import images, random_targets, tiny


@pytest.fixture
def network() -> OneHead:
    return tiny()


@pytest.fixture
def pretrained(network: OneHead) -> PretrainedBackbone:
    torch.manual_seed(4)
    return PretrainedBackbone(copy.deepcopy(network.backbone), PooledReadout(sum(network.backbone.channels), 20))


def term(weight: float, student: OneHead, pretrained: PretrainedBackbone | None) -> dict[str, Tensor]:
    torch.manual_seed(2)
    recall = Recall(weight)
    recall.before_stage(Stage(("seg",), (), None, lambda: [], student, pretrained=pretrained))
    step = Step(images(2, seed=5), random_targets(["seg", "seg"]))
    recall.before_step(step)
    return recall.penalty(step, student(step.images))


def shaken(model: OneHead) -> OneHead:
    torch.manual_seed(1)
    student = copy.deepcopy(model).requires_grad_(True)
    with torch.no_grad():
        for p in student.backbone.parameters():
            p += 0.1 * p.abs().mean() * torch.randn_like(p)
    return student


def test_it_is_zero_at_the_start_and_grows_with_distance_and_weight(
    network: OneHead, pretrained: PretrainedBackbone
) -> None:
    same = term(1.0, network, pretrained)["recall"]
    one, two = (term(weight, shaken(network), pretrained)["recall"] for weight in (1.0, 2.0))
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert one.item() > 1e-6
    assert two.item() == pytest.approx(2 * one.item(), rel=1e-4)


def test_its_gradient_reaches_the_backbone_alone(network: OneHead, pretrained: PretrainedBackbone) -> None:
    student = shaken(network)
    term(1.0, student, pretrained)["recall"].backward()
    assert all(p.grad is None for part in (student.neck, student.head) for p in part.parameters())
    assert all(p.grad is not None for p in student.backbone.parameters())
    assert all(p.grad is None for p in pretrained.parameters())


def test_maps_may_move_where_the_naming_does_not_care(pretrained: PretrainedBackbone) -> None:
    assert isinstance(pretrained.readout, PooledReadout)
    with torch.no_grad():
        pretrained.readout.linear.weight[:, 0] = 0.0  # the first channel of the finest map is not read
    recall = Recall(1.0)
    recall.before_stage(Stage(("seg",), (), None, lambda: [], pretrained=pretrained))
    step = Step(images(2, seed=5), random_targets(["seg", "seg"]))
    recall.before_step(step)
    maps = [m.clone() for m in pretrained.maps(step.images)]
    maps[0][:, 0] += 5.0
    assert recall.penalty(step, {"backbone_maps": maps})["recall"].item() == pytest.approx(0, abs=1e-6)
    maps[0][:, 1] += 5.0
    assert recall.penalty(step, {"backbone_maps": maps})["recall"].item() > 1e-3


def test_what_names_nothing_is_not_recalled(network: OneHead) -> None:
    nameless = PretrainedBackbone(copy.deepcopy(network.backbone))
    assert term(1.0, shaken(network), nameless) == {}
    recall = Recall(1.0)
    recall.before_stage(Stage(("seg",), (), None, lambda: [], pretrained=nameless))
    assert recall.teacher is None  # so that no step pays for its maps


def test_regions_lie_within_the_image() -> None:
    corners = to_xyxy(random_boxes(5, 40, torch.device("cpu")))
    assert corners.min() >= 0
    assert corners.max() <= 1
    assert ((corners[..., 2:] - corners[..., :2]) >= 0.2 - 1e-6).all()


def test_without_a_pretrained_network_there_is_nothing_to_recall(network: OneHead) -> None:
    assert term(1.0, shaken(network), None) == {}


@pytest.mark.parametrize(
    ("backbone", "network"),
    [("efficientnet_lite0", "tf_efficientnet_lite0"), ("mobilenetv3_small", "mobilenetv3_small_100")],
)
@torch.no_grad()
def test_a_public_network_names_the_whole_image_as_its_classifier_does(
    backbone: str, network: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    body = timm.create_model(network, num_classes=1000).eval()
    torch.save(body.state_dict(), tmp_path / "public.pth")
    config = Config(init=f"imagenet:{tmp_path / 'public.pth'}", model=ModelConfig(backbone=backbone))
    pretrained = pretrained_backbone(config)
    assert pretrained is not None
    assert isinstance(pretrained.readout, ClassifierReadout)
    image, whole = torch.rand(2, 3, 96, 64), torch.tensor([0.5, 0.5, 1, 1]).expand(2, 1, 4)
    found = pretrained.name(pretrained.maps(image), whole)
    torch.testing.assert_close(found[:, 0], body((image - pretrained.mean) / pretrained.std), atol=1e-4, rtol=1e-4)


def test_public_weights_without_their_classifier_name_nothing(tmp_path: Path) -> None:
    body = timm.create_model("mobilenetv3_small_100", num_classes=0)
    torch.save(body.state_dict(), tmp_path / "bare.pth")
    config = Config(init=f"imagenet:{tmp_path / 'bare.pth'}", model=ModelConfig(backbone="mobilenetv3_small"))
    pretrained = pretrained_backbone(config)
    assert pretrained is not None
    assert pretrained.readout is None


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_maps_of_lower_precision_are_named_too(name: str) -> None:
    network = PublicTeacher(name)
    maps = [torch.rand(1, network.channels[-1], 3, 3, dtype=torch.bfloat16, requires_grad=True)]
    found = ClassifierReadout(network)(maps, random_boxes(1, 4, torch.device("cpu")))
    assert found.shape == (1, 4, 1000)
    found.sum().backward()
    assert maps[0].grad is not None
