"""Annotations of a batch move as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from models.targets import Targets
from tests.models.builders import random_targets


def test_every_image_keeps_its_annotation_on_another_device() -> None:
    targets = random_targets(["det", "seg", "all", None])
    there = targets.to("meta")
    assert [tuple(b.shape) for b in there.boxes] == [(3, 4), (0, 4), (3, 4), (0, 4)]
    assert {value.device.type for value in (*there.boxes, *there.labels, there.masks, there.classes)} == {"meta"}
    here = targets.to("cpu")
    for name, value in vars(targets).items():
        for own, other in zip(*(v if isinstance(v, list) else [v] for v in (value, getattr(here, name))), strict=True):
            assert isinstance(own, Tensor)
            assert torch.equal(own, other)
    assert isinstance(here, Targets)
