from __future__ import annotations

import torch

from models.criterion import Criterion, LossConfig
from models.matcher import match_one_to_many, match_one_to_one
from models.regions import region_boxes, with_regions
from models.targets import NO_CLASS, UNNAMED, VOID, Targets
from tests.models.builders import images, random_targets, tiny


def drawn() -> torch.Tensor:
    """Two regions of class 3, one of class 7 that touches the first, a speck, a strip of void; 64 x 64."""
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[8:24, 8:40] = 3
    mask[24:40, 8:24] = 7
    mask[48:64, 48:64] = 3
    mask[2:4, 60:62] = 5
    mask[:, 44:46] = VOID
    return mask


def test_every_connected_region_of_a_class_is_a_box() -> None:
    corners = torch.tensor([[8, 8, 40, 24], [48, 48, 64, 64], [8, 24, 24, 40]]) / 64
    expected = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    torch.testing.assert_close(region_boxes(drawn()), expected)


def test_background_and_void_alone_hold_no_region() -> None:
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[:32] = VOID
    assert region_boxes(mask).shape == (0, 4)


def test_only_images_with_a_mask_and_without_boxes_get_regions() -> None:
    both = random_targets(["det", "cls", "seg"])
    found = with_regions(both)
    assert torch.equal(found.boxes[0], both.boxes[0])
    assert found.has_boxes.tolist() == [True, False, True]
    assert len(found.boxes[1]) == 0
    assert len(found.boxes[2]) > 0
    assert set(found.labels[2].tolist()) == {UNNAMED}
    assert not both.has_boxes[2]  # the given targets stay as they were


def test_unnamed_objects_teach_places_and_no_class() -> None:
    model = tiny().eval()
    outputs = model(images(1))
    box = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    blank = torch.full((1, 64, 64), VOID)
    unnamed = Targets([box], [torch.tensor([UNNAMED])], torch.tensor([True]), blank, torch.tensor([NO_CLASS]))
    losses = Criterion(LossConfig(groups=0, denoise=0))(outputs, unnamed)
    assert all(float(v.detach()) == 0 for k, v in losses.items() if k.startswith("det_class"))
    assert float(losses["giou"]) > 0
    torch.stack(list(losses.values())).sum().backward()
    rows = model.head.projection.weight.grad
    assert not rows[model.head.block("det")].any()
    assert rows[model.head.block("box")].any()
    assert rows[model.head.block("conf")].any()


@torch.no_grad()
def test_matching_an_unnamed_object_ignores_classes() -> None:
    outputs = tiny().eval()(images(1))
    box, blank = torch.tensor([[0.3, 0.6, 0.3, 0.2]]), torch.full((1, 64, 64), VOID)
    unnamed = Targets([box], [torch.tensor([UNNAMED])], torch.tensor([True]), blank, torch.tensor([NO_CLASS]))
    changed = {**outputs, "pred_logits": torch.randn_like(outputs["pred_logits"])}
    dense = {**outputs["dense"], "pred_logits": torch.randn_like(outputs["dense"]["pred_logits"])}
    assert torch.equal(match_one_to_one(outputs, unnamed).query, match_one_to_one(changed, unnamed).query)
    assert torch.equal(match_one_to_many(outputs["dense"], unnamed).query, match_one_to_many(dense, unnamed).query)
