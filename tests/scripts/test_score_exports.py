"""Every way to export is scored on the same images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.storage.checkpoint import model_content, save
from models.onehead import ModelConfig, OneHead
from scripts.fill_tables import fill
from scripts.report.speed import SCORES
from scripts.score_exports import main
from tests.engine.oracle import CLASSES, write_sets


def test_float_files_score_as_the_checkpoint_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sets(tmp_path / "sets")
    torch.manual_seed(0)
    save(tmp_path / "w.pt", model_content(OneHead(ModelConfig(dim=32, hidden=32, layers=2, queries=12), CLASSES, 64)))
    options = ["--weights", str(tmp_path / "w.pt"), "--data_root", str(tmp_path / "sets")]
    options += ["--int8", str(tmp_path / "sets" / "imagenette_160"), "--json", str(tmp_path / "exports.json")]
    assert main(options) == 0
    record = json.loads((tmp_path / "exports.json").read_text())
    names = ["torch, float32", "ONNX, float32", "ONNX, float16", "ONNX, int8"]
    assert [row["model"] for row in record["rows"]] == names
    torch_, float32, _, int8 = record["rows"]
    assert {name: torch_[name] for name in SCORES} == pytest.approx({name: float32[name] for name in SCORES}, abs=2e-3)
    assert int8["megabytes"] < float32["megabytes"]
    assert record["command"].startswith("python -m scripts.score_exports --weights")
    filled = fill("<!-- table exports -->\n<!-- end -->\n", tmp_path)
    assert filled.splitlines()[1:-1] == capsys.readouterr().out.splitlines()
