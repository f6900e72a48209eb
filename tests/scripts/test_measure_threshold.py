"""The threshold of a network's boxes: measured on a set, kept in its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.synthetic import main as draw_sets
from data.types import Record
from engine.evaluation.average_precision import Detections, DetectionTally
from engine.storage.checkpoint import load, load_model, model_content, save
from engine.storage.errors import UserError
from models.onehead import ModelConfig, OneHead
from scripts import measure_threshold
from scripts.measure_threshold import main, measured

BOX, ELSEWHERE = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]


def tally(*scored: tuple[float, bool]) -> DetectionTally:
    """Of images with an object each, in which one box is found, rightly or not."""
    no, area, label = torch.zeros(1, dtype=torch.bool), torch.tensor([2500.0]), torch.zeros(1, dtype=torch.int64)
    record = Record(Path("x.jpg"), torch.tensor([BOX]), label, no, area)
    found = [
        Detections(torch.tensor([BOX if right else ELSEWHERE]), torch.tensor([score]), label) for score, right in scored
    ]
    return DetectionTally((record,) * len(found), tuple(found), ("a",))


def test_the_threshold_is_the_lowest_at_which_half_of_the_boxes_are_right() -> None:
    found = tally((0.9, False), (0.8, True), (0.7, True), (0.555, False), (0.4, False), (0.3, True), (0.2, False))
    assert measured(found) == {"threshold": 0.21, "precision": 0.5, "recall": 0.429, "boxes_an_image": 0.86}
    assert measured(tally((0.555, True), (0.549, False), (0.542, False)))["threshold"] == 0.55
    with pytest.raises(UserError, match="at no threshold are 50% of the boxes right"):
        measured(tally((0.9, False), (0.8, False), (0.4, True)))
    with pytest.raises(UserError, match="at no threshold"):
        measured(tally((0.001, True)))


def test_a_checkpoint_keeps_what_was_measured_and_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_sets(["--root", str(tmp_path / "sets"), "--train", "5", "--val", "5", "--size", "64"])
    classes = {"det": ("disc", "star"), "seg": ("background",), "cls": ("dots", "rings")}
    model = OneHead(ModelConfig(dim=32, hidden=32, queries=10), classes, 64)
    torch.nn.init.zeros_(model.head.projection.bias)  # untrained, it is sure of nothing
    content = {**model_content(model), "training_images": ["00"]}
    content["model"] = {k: v.half() if v.is_floating_point() else v for k, v in content["model"].items()}
    save(tmp_path / "w.pt", content)
    monkeypatch.setattr(measure_threshold, "PRECISION", 0.0)  # and has no right box
    assert main([str(tmp_path / "w.pt"), "--data_root", str(tmp_path / "sets")]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["images"], printed["threshold"]) == (5, 0.01)
    after = load(tmp_path / "w.pt")
    assert load_model(tmp_path / "w.pt").threshold == 0.01
    assert (after["training_images"], after["model"].keys()) == (["00"], content["model"].keys())
    assert all(torch.equal(after["model"][k], v) for k, v in content["model"].items())
