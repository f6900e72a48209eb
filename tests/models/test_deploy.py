"""The fused copy answers as the model does, and the model stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.boxes import to_xyxy
from models.deploy import Deployed, LastLayer, fused
from models.onehead import ModelConfig, OneHead
from models.postprocess import class_masks, detections
from tests.models.builders import images, tiny


@pytest.mark.parametrize("backbone", ["fast_scnn", "mobilenetv3_small", "efficientnet_lite0", "yolov8n"])
def test_fused_copy_gives_the_same_outputs(backbone: str) -> None:
    model = tiny(backbone=backbone)
    model.train()
    for _ in range(3):  # statistics that differ from their start
        model(images(4))
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quick = fused(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quick.modules())
    with torch.no_grad():
        expected, found = model(images(2)), quick(images(2))
    assert torch.equal(expected["queries"].index, found["queries"].index)
    for name in ("pred_boxes", "pred_logits", "pred_masks", "pred_class"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["fast_scnn", "mobilenetv3_small", "efficientnet_lite0", "yolov8n"])
def test_the_copy_for_use_gives_the_last_layer_alone_with_the_face_of_the_model(backbone: str) -> None:
    model = tiny(seed=1, backbone=backbone)
    quick = LastLayer(model)
    expected, found = model(images(2)), quick(images(2))
    assert set(found) == {"pred_boxes", "pred_logits", "pred_masks", "pred_class"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    assert (quick.classes, quick.input_size, quick.threshold) == (model.classes, model.input_size, model.threshold)
    assert torch.equal(quick.mean, model.mean)
    assert not quick.training


@torch.no_grad()
def test_the_deployed_copy_gives_the_outputs_of_the_last_layer() -> None:
    model = tiny(seed=1)  # with seed 0 two locations are equally sure, and rounding decides which comes first
    expected, found = model(images(2)), Deployed(model)(images(2))
    for name in ("pred_boxes", "pred_logits", "pred_masks", "pred_class"):
        torch.testing.assert_close(getattr(found, name), expected[name], rtol=1e-3, atol=1e-4)
    for image, best in enumerate(detections(expected)):
        torch.testing.assert_close(found.scores[image], best["scores"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.boxes[image], to_xyxy(best["boxes"]), rtol=1e-3, atol=1e-4)
        assert torch.equal(found.labels[image], best["labels"])
    assert torch.equal(found.mask, class_masks(expected["pred_masks"], 8))
    assert torch.equal(found.label, expected["pred_class"].argmax(1))


@torch.no_grad()
def test_what_is_deployed_is_what_a_user_reads() -> None:
    found = Deployed(tiny(), top_k=20)(images(1, 64, 96))
    assert found.boxes.shape == (1, 20, 4)
    assert found.scores.diff().max() <= 0
    assert found.mask.shape == (1, 64, 96)
    assert found.mask.dtype == torch.int64
    assert 0 <= int(found.mask.min()) <= int(found.mask.max()) < 5
    assert found.label.shape == (1,)


@torch.no_grad()
@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_a_network_of_one_task_is_deployed(task: str) -> None:
    classes = {"seg": ("background", "cat"), "det": ("cat",), "cls": ("cat", "dog")}
    model = OneHead(ModelConfig(queries=20), {t: names if t == task else () for t, names in classes.items()}, 64).eval()
    found = Deployed(model)(images(2)[..., :64, :64])
    assert found.scores.shape[1] == (20 if task == "det" else 0)
    assert found.mask.shape == (2, 64, 64)
    assert task == "seg" or not found.mask.any()
    assert found.label.shape == (2,)
