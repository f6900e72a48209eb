"""The fused copy answers as the model does, and the model stays as it is."""

from __future__ import annotations

import torch
from torch import nn

from models.deploy import fused
from tests.models.builders import images, tiny


def test_fused_copy_gives_the_same_outputs_without_batch_norms() -> None:
    model = tiny()
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
    for name in ("pred_boxes", "pred_conf", "pred_logits", "pred_masks", "pred_class"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
