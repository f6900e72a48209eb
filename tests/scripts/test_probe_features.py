"""Linear readouts find what is there, and nothing where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from scripts.probe_features import main, probe_labels, probe_masks
from tests.engine.conftest import drawn  # noqa: F401


def test_labels_that_features_determine_are_read() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 4
    told = F.one_hot(labels, 8).float() + 0.1 * torch.randn(60, 8, generator=generator)
    assert probe_labels(told, labels) == 1.0


def test_labels_unrelated_to_features_are_not_overfitted() -> None:
    # 60 images of 100 random features: a classifier fits them all, so only images held out tell the truth.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 4
    assert probe_labels(torch.randn(60, 100, generator=generator), labels) < 0.5


def test_masks_that_features_determine_are_read() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    cells = torch.randint(3, (220, 1, 4, 4), generator=generator).float()
    masks = F.interpolate(cells, scale_factor=8, mode="nearest")[:, 0].long()
    features = 5 * F.one_hot(cells[:, 0].long(), 3).permute(0, 3, 1, 2).half()
    fit, held = (features[:200], masks[:200]), (features[200:], masks[200:])
    assert probe_masks(fit, held, ("background", "cat", "dog")) > 0.8


@pytest.mark.parametrize("maps", ["neck", "backbone"])
def test_readouts_are_scored_on_another_root(maps: str, drawn: Path, tmp_path: Path) -> None:  # noqa: F811
    where = ["--data_root", str(drawn), "--score", str(drawn), "--json", str(tmp_path / "probe.json")]
    assert main(["--init", "null", "--size", "64", "--maps", maps, "--read", "labels", "masks", *where]) == 0
    figures = json.loads((tmp_path / "probe.json").read_text())
    assert (figures["maps"], figures["scored on"]) == (maps, "sets")  # the folder's name alone: paths say who ran it
    assert 0 <= figures["Top-1"] <= 1
    assert 0 <= figures["mIoU"] <= 1
