"""An evaluation on images that the model has learnt from is reported, whatever the files are called."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import eval as evaluation
from engine.evaluation.leakage import digest, digests, trained_on
from engine.storage.checkpoint import load, save
from engine.storage.errors import run_cli
from engine.train import main
from scripts.publish_weights import main as publish

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def chain(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with its stages seg and det."""
    from tests.engine.conftest import TINY

    runs = tmp_path_factory.mktemp("chain")
    main([*TINY, "--data.root", str(drawn), "--runs", str(runs), "--name", "tiny", "--order", "[seg, det]"])
    return runs / "tiny"


def evaluate(weights: Path, root: Path, *options: str) -> int:
    arguments = ["--weights", str(weights), "--data_root", str(root), "--device", "cpu", *options]
    return run_cli(evaluation.main, arguments)


def training_images(root: Path, *sets: str) -> list[Path]:
    return sorted(path for name in sets for path in (root / name / "train").rglob("images/*"))


def test_a_digest_stands_for_the_content_alone(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    assert digest(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()[:16]
    assert digests(tmp_path / name for name in "abc") == sorted({digest(tmp_path / "a"), digest(tmp_path / "b")})
    seen = {"training_images": [digest(tmp_path / "a"), 7, ["x"]]}
    assert trained_on([tmp_path / "c", tmp_path / "b"], seen) == [tmp_path / "c"]
    assert trained_on([tmp_path / "c"], {}) is None
    assert trained_on([tmp_path / "c"], {"training_images": 5}) is None


def test_a_checkpoint_lists_the_images_of_its_stage_and_of_those_before(chain: Path, drawn: Path) -> None:
    assert load(chain / "seg.pt")["training_images"] == digests(training_images(drawn, "mini_voc_seg"))
    both = digests(training_images(drawn, "mini_voc_seg", "mini_coco_det"))
    assert load(chain / "det.pt")["training_images"] == both
    assert len(both) == 24


def test_the_list_is_found_under_its_former_name(chain: Path, tmp_path: Path) -> None:
    content = load(chain / "seg.pt")
    images = content.pop("training_images")
    save(tmp_path / "old.pt", {**content, "seen": images})
    assert load(tmp_path / "old.pt")["training_images"] == images


def test_a_run_started_from_a_checkpoint_inherits_its_list(chain: Path, tiny: list[str], tmp_path: Path) -> None:
    main([*tiny, "--stage", "det", "--order", "[det]", "--init", str(chain / "seg.pt")])
    assert load(tmp_path / "runs" / "tiny" / "det.pt")["training_images"] == load(chain / "det.pt")["training_images"]


def test_new_images_are_scored_without_a_word(chain: Path, drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    assert evaluate(chain / "det.pt", drawn, "--split", "val", "--json", str(tmp_path / "s.json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out.splitlines()[-1])["seen_in_training"] == 0
    assert {s["seen_in_training"] for s in json.loads((tmp_path / "s.json").read_text())["sets"].values()} == {0}


def test_training_images_are_named_under_any_name(chain: Path, drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "hidden"
    shutil.copytree(drawn / "mini_voc_seg" / "val", root / "mini_voc_seg" / "test")
    new = root / "mini_voc_seg" / "test" / "images" / "renamed.jpg"
    shutil.copyfile(training_images(drawn, "mini_voc_seg")[3], new)
    masks = drawn / "mini_voc_seg" / "train" / "masks", root / "mini_voc_seg" / "test" / "masks"
    shutil.copyfile(masks[0] / "000004.png", masks[1] / "renamed.png")
    assert evaluate(chain / "det.pt", root, "--tasks", "seg", "--json", str(tmp_path / "s.json")) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        f"warning: 1 of 6 segmentation images are training images of this model, first {new}: "
        "its scores say nothing about new images\n"
    )
    assert json.loads(captured.out.splitlines()[-1])["seen_in_training"] == 1
    assert json.loads((tmp_path / "s.json").read_text())["sets"]["seg"]["seen_in_training"] == 1


def test_an_older_checkpoint_has_no_list(chain: Path, drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    content = load(chain / "seg.pt")
    del content["training_images"]
    save(tmp_path / "old.pt", content)
    assert evaluate(tmp_path / "old.pt", drawn, "--tasks", "seg", "--split", "train") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out.splitlines()[-1])["seen_in_training"] is None
    assert publish([str(tmp_path / "old.pt"), str(tmp_path / "given.pt")]) == 0
    assert "training_images" not in load(tmp_path / "given.pt")


def test_published_weights_keep_the_list_and_nothing_of_the_machine(chain: Path, tmp_path: Path) -> None:
    assert publish([str(chain / "det.pt"), str(tmp_path / "given.pt")]) == 0
    given = load(tmp_path / "given.pt")
    assert given["training_images"] == load(chain / "det.pt")["training_images"]
    assert not {"remedies", "rows", "optimizer"} & given.keys()
    assert str(chain.parent).encode() not in (tmp_path / "given.pt").read_bytes()
