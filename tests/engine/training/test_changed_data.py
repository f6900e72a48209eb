"""Data that changes between two stages, and data of one task alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from engine.storage.checkpoint import load
from engine.storage.errors import UserError
from engine.train import main
from tests.engine.conftest import TINY


def folder_of(root: Path, word: str) -> Path:
    return next(path for path in sorted(root.iterdir()) if word in path.name)


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run on a copy of the drawn sets, which a test may change: tmp_path / "sets"."""
    shutil.copytree(drawn, tmp_path / "sets")
    return [*TINY, "--data.root", str(tmp_path / "sets"), "--runs", str(tmp_path / "runs"), "--name", "tiny"]


def test_changed_data_is_noticed_when_the_next_stage_starts(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own, "--stage", "seg"]) == 0
    picture = sorted((folder_of(tmp_path / "sets", "voc") / "train" / "images").iterdir())[0]
    Image.new("RGB", Image.open(picture).size, "red").save(picture)
    capsys.readouterr()
    assert main([*own, "--stage", "det"]) == 0
    out = capsys.readouterr().out
    assert "note: stage det: the training images of seg are not those that" in out
    assert "(1 new, 1 gone)" in out
    for path in folder_of(tmp_path / "sets", "coco").rglob("*.json"):
        document = json.loads(path.read_text())
        for category in document["categories"]:
            category["name"] += " too"
        path.write_text(json.dumps(document))
    sentence = r"stage cls: the classes of det were .* when .*det.pt was written, and are .* too"
    with pytest.raises(UserError, match=sentence):
        main([*own, "--stage", "cls"])


def test_one_task_is_learnt_where_only_its_set_is_there(own: list[str], tmp_path: Path) -> None:
    for word in ("voc", "imagenette"):
        shutil.rmtree(folder_of(tmp_path / "sets", word))
    assert main([*own, "--order", "[det]"]) == 0
    content = load(tmp_path / "runs" / "tiny" / "det.pt")
    assert content["classes"]["seg"] == content["classes"]["cls"] == []
    assert content["classes"]["det"]
    assert {"AP50"} <= content["rows"][-1].keys()
