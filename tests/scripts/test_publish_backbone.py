from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.storage.checkpoint import backbone_weights, save
from engine.storage.errors import UserError
from models.backbones.fast_scnn import FastSCNN, own_names, published_names
from scripts.publish_backbone import main

ROOT = Path(__file__).parents[2]
STAGE0 = ROOT / "weights" / "fast_scnn_stage0.pt"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "backbone.safetensors"
    assert main([str(STAGE0), str(path)]) == 0
    return path


def test_layers_have_the_paper_s_names(published: Path) -> None:
    found = {".".join(name.split(".")[:2]) for name in load_file(published)}
    down, deep = "learning_to_downsample.", "global_feature_extractor."
    assert {name for name in found if not name.startswith("feature_fusion")} == {
        *(down + layer for layer in ("conv", "dsconv1", "dsconv2")),
        *(deep + layer for layer in ("bottleneck1", "bottleneck2", "bottleneck3", "ppm")),
    }


def test_the_weights_are_those_of_the_checkpoint(published: Path) -> None:
    backbone = FastSCNN()
    backbone.load_state_dict(own_names(load_file(published)))
    for name, weight in backbone_weights(STAGE0, "fast_scnn").items():
        assert torch.equal(backbone.state_dict()[name], weight.half().float()), name


def test_the_file_holds_how_images_are_normalised(published: Path) -> None:
    with safe_open(published, framework="pt") as file:
        about = file.metadata()
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(about["std"]) == [0.229, 0.224, 0.225]
    assert "lite0" in about["teacher"]
    assert "/" not in about["teacher"]  # nothing of the machine it was made on


def test_names_go_there_and_back_and_foreign_ones_are_refused() -> None:
    weights = FastSCNN().state_dict()
    assert own_names(published_names(weights)).keys() == weights.keys()
    with pytest.raises(KeyError, match=r"classifier.weight belongs to none of"):
        own_names({"classifier.weight": torch.zeros(1)})


def test_the_model_card_s_lines_run_beside_a_single_file_of_this_project(published: Path, tmp_path: Path) -> None:
    card = (ROOT / "weights" / "fast_scnn_stage0.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    (tmp_path / "fast_scnn.py").write_text((ROOT / "models" / "backbones" / "fast_scnn.py").read_text())
    (tmp_path / "fast_scnn_stage0.safetensors").write_bytes(published.read_bytes())
    program = f"import torch\nimages = torch.rand(1, 3, 64, 96)\n{code}\nprint([tuple(m.shape) for m in maps])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(1, 128, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)]"


def test_another_ending_and_another_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in .safetensors"):
        main([str(STAGE0), str(tmp_path / "backbone.pt")])
    save(tmp_path / "other.pt", {"architecture": {"backbone": "yolov8n"}, "model": {}, "stage": "seg"})
    with pytest.raises(UserError, match="has the backbone yolov8n, not fast_scnn"):
        main([str(tmp_path / "other.pt"), str(tmp_path / "backbone.safetensors")])
