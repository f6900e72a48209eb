from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.composing import mosaic, paste
from data.transforms import eval_transform
from data.types import VOID, Sample
from tests.data.test_transforms import corners, extent, gen, picture, red


def four(task: str) -> list[Sample]:
    boxes = [(10, 12, 40, 50), (30, 5, 60, 30), (5, 30, 35, 60), (20, 20, 45, 45)]
    shown = [eval_transform(64)(picture(64, 64, box, masked=task == "seg")) for box in boxes]
    return [Sample(s.image, i, s.boxes, s.labels, s.mask, None) for i, s in enumerate(shown)]


def test_mosaic_boxes_follow_pixels():
    seen = 0
    for seed in range(80):
        whole = mosaic(four("det"), gen(seed))
        assert whole.image.shape == (3, 64, 64)
        assert whole.mask is None
        for box in corners(whole):
            x1, y1, x2, y2 = box.tolist()
            window = torch.zeros(64, 64, dtype=torch.bool)
            # Two pixels more than the box, so that pixels outside it would be seen.
            window[max(0, round(y1) - 2) : round(y2) + 2, max(0, round(x1) - 2) : round(x2) + 2] = True
            near = red(whole.image) & window
            if near.sum() < 1.2 * (x2 - x1) * (y2 - y1) and not _touches_seam(whole, box):
                assert (extent(near) - box).abs().max() <= 1.5
                seen += 1
    assert seen > 100


def _touches_seam(whole: Sample, box: Tensor) -> bool:
    """A neighbour's rectangle may continue beyond a cut box; then pixels cannot tell."""
    others = [b for b in corners(whole) if not torch.equal(b, box)]
    return any(bool((b[:2] - 4 < box[2:]).all() and (b[2:] + 4 > box[:2]).all()) for b in others)


def test_mosaic_masks_follow_pixels():
    for seed in range(40):
        whole = mosaic(four("seg"), gen(seed))
        assert whole.mask is not None
        assert whole.boxes is None
        assert ((whole.mask == 1) ^ red(whole.image)).float().mean() < 0.03


def test_mosaic_shows_all_four_in_their_quarters():
    values = [Sample(torch.full((3, 64, 64), (i + 1) / 10), i, label=i) for i in range(4)]
    whole = mosaic(values, gen(0))
    assert [round(float(whole.image[0, y, x]), 3) for y in (0, 63) for x in (0, 63)] == [0.1, 0.2, 0.3, 0.4]
    assert whole.label is None
    assert whole.boxes is None
    assert whole.index == 0
    assert torch.equal(whole.image, mosaic(values, gen(0)).image)


def test_mosaic_of_mixed_tasks_claims_nothing_about_the_whole():
    whole = mosaic([*four("det")[:2], *four("seg")[:2]], gen(0))
    assert whole.boxes is None
    assert whole.labels is None
    assert whole.mask is None


def test_pasted_objects_bring_their_pixels_and_leave_the_rest() -> None:
    below, above = four("seg")[:2]
    assert below.mask is not None
    assert above.mask is not None
    mask = torch.zeros_like(above.mask)
    mask[2:5, 3:9] = 7
    mask[5, 3:9] = VOID
    whole = paste(below, replace(above, mask=mask))
    assert whole.mask is not None
    inside = mask == 7
    assert torch.equal(whole.image[:, inside], above.image[:, inside])
    assert torch.equal(whole.image[:, ~inside], below.image[:, ~inside])
    assert (whole.mask[inside] == 7).all()
    assert torch.equal(whole.mask[~inside], below.mask[~inside])


def test_mosaic_refuses_other_counts_and_mixed_sizes():
    with pytest.raises(ValueError, match="four samples of one size, got 3"):
        mosaic(four("det")[:3], gen(0))
    odd = Sample(torch.zeros(3, 32, 32), 0)
    with pytest.raises(ValueError, match="32, 32"):
        mosaic([*four("det")[:3], odd], gen(0))
