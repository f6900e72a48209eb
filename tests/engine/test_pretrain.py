"""Stage 0 learns, resumes bit for bit, and hands on everything but the class rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from engine.pretrain import Pretraining
from engine.settings.config import Config
from engine.storage.checkpoint import FORMAT, load, load_backbone, load_model, load_weights, stage0_path
from engine.storage.errors import UserError
from engine.train import main
from engine.training.batches import Batch
from models.onehead import ModelConfig, OneHead
from tests.engine.conftest import TINY

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 50)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that colour tells apart, 60 images each, so 3 held out of each."""
    root = tmp_path_factory.mktemp("classes")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(60):
            shade = tuple(min(255, c + 2 * (i % 10)) for c in colour)
            Image.new("RGB", (24 + i % 8, 24), shade).save(root / name / f"{i:02}.png")
    return root


def run(images: Path, runs: Path, *more: str) -> int:
    size = [*TINY[2:], "--data.size", "96"]
    own = "--stage pretrain --name p --pretrain.batch 4 --pretrain.tiles 4 --pretrain.mosaics 2 --pretrain.ema 0.9"
    where = ["--runs", str(runs), "--pretrain.sources", f"[{images}]", "--pretrain.mosaic.color", "0.1"]
    return main([*size, *own.split(), *where, *more])


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a stage 0 that ran through."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(images, runs) == 0
    return runs / "p"


def test_a_run_leaves_weights_figures_and_curves(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    passes = [("tiles", 1), ("tiles", 2), ("tiles", 3), ("tiles", 4), ("mosaics", 1), ("mosaics", 2)]
    assert [(r["stage"], r["epoch"]) for r in rows] == passes
    assert {"accuracy", "accuracy@8", "accuracy@16", "accuracy@32", "loss", "seconds"} <= set(rows[0])
    assert rows[3]["loss"] < rows[0]["loss"]
    assert {"tile"} == set(rows[0]["losses"])
    assert {"conf", "l1", "giou", "seg_ce", "seg_dice"} <= set(rows[-1]["losses"])
    left = {"config.yaml", "metrics.jsonl", "pretrain.pt", "pretrain.png", ".lock"}
    assert {p.name for p in finished.iterdir()} == left
    model = load_model(finished / "pretrain.pt")
    assert model.classes == {"det": tuple(COLOURS), "seg": ("background", *COLOURS), "cls": tuple(COLOURS)}


def test_an_interrupted_run_ends_bit_for_bit_the_same(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Pretraining.train_epoch
    calls = []

    def stop_at_times(self: Pretraining) -> dict[str, object]:
        calls.append(1)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Pretraining, "train_epoch", stop_at_times)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(images, tmp_path, "--resume")
    assert run(images, tmp_path, "--resume") == 0
    first, second = load(finished / "pretrain.pt")["model"], load(tmp_path / "p" / "pretrain.pt")["model"]
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_an_interrupted_run_is_not_overwritten(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pretraining.train_epoch

    def once(self: Pretraining) -> dict[str, object]:
        if self.epoch:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Pretraining, "train_epoch", once)
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path)
    with pytest.raises(ValueError, match="add --resume"):
        run(images, tmp_path)
    assert (tmp_path / "p" / "last.pt").is_file()


def test_a_second_round_goes_on_from_the_first_on_canvases_of_its_own(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []
    whole = Pretraining.step

    def watch(self: Pretraining, batch: Batch, slots: Tensor, number: int) -> dict[str, float]:
        sides.append((self.phase, self.epoch, batch[0].shape[-1]))
        return whole(self, batch, slots, number)

    monkeypatch.setattr(Pretraining, "step", watch)
    more = ["--pretrain.init", str(finished / "pretrain.pt"), "--pretrain.sizes", "[32, 64]"]
    assert run(images, tmp_path, *more) == 0
    sizes = {
        ("tiles", 0): 32,
        ("tiles", 1): 32,
        ("tiles", 2): 64,
        ("tiles", 3): 64,
        ("mosaics", 0): 96,
        ("mosaics", 1): 96,
    }
    assert set(sides) == {(*key, side) for key, side in sizes.items()}
    first, second = (
        json.loads((runs / "p" / "metrics.jsonl").read_text().splitlines()[0]) for runs in (finished.parent, tmp_path)
    )
    assert second["loss"] < first["loss"]


def test_a_canvas_of_another_side_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain.sizes names 50: it must be a multiple of 32"):
        run(images, tmp_path, "--pretrain.sizes", "[64, 50]")


def test_an_optimiser_of_an_earlier_phase_is_forgotten(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    whole = Pretraining.step

    def watch(self: Pretraining, batch: Batch, slots: Tensor, number: int) -> dict[str, float]:
        counts.append((self.phase, len(self.accelerator._optimizers)))
        return whole(self, batch, slots, number)

    monkeypatch.setattr(Pretraining, "step", watch)
    assert run(images, tmp_path, "--pretrain.tiles", "1", "--pretrain.mosaics", "1") == 0
    assert set(counts) == {("tiles", 1), ("mosaics", 1)}  # more would scale its gradients back once each


def test_a_run_goes_on_only_as_it_began(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pretraining.train_epoch

    def stop(self: Pretraining) -> dict[str, object]:
        if self.epoch:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Pretraining, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path)
    with pytest.raises(UserError, match=r"last.pt holds an optimiser with other groups of weights"):
        run(images, tmp_path, "--resume", "--pretrain.weight_decay", "0")


def test_later_stages_start_from_it_but_for_the_class_rows(finished: Path) -> None:
    theirs = load_model(finished / "pretrain.pt")
    classes = {"seg": ("background", "red", "blue"), "det": tuple(COLOURS), "cls": ("red", "cow")}
    torch.manual_seed(5)
    model = OneHead(theirs.config, classes, 96)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    assert load_weights(model, finished / "pretrain.pt") == ["seg", "cls"]
    own, other = model.state_dict(), theirs.state_dict()
    rows = "head.projection.weight"
    for name in ("box", "conf", "det", "mask"):
        assert torch.equal(own[rows][model.head.block(name)], other[rows][theirs.head.block(name)])
    block = model.head.block("cls")
    assert torch.equal(own[rows][block], fresh[rows][block])
    apart = (rows, "head.projection.bias", "head.class_queries")
    assert all(torch.equal(own[k], other[k]) for k in own if k not in apart)
    queries, learnt = own["head.class_queries"], other["head.class_queries"]
    assert not any(torch.equal(q, v) for q in queries for v in learnt)


def test_a_stage_started_from_it_says_so(finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny, "--stage", "seg", "--init", str(finished / "pretrain.pt")]) == 0
    assert f"starts from {finished / 'pretrain.pt'}; new classes: seg, det, cls" in capsys.readouterr().out


def test_its_backbone_alone_can_be_the_start(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = OneHead(load_model(finished / "pretrain.pt").config, dict.fromkeys(("seg", "det", "cls"), ("a", "b")), 96)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    load_backbone(model, finished / "pretrain.pt")
    own, theirs = model.state_dict(), load_model(finished / "pretrain.pt").state_dict()
    for key, value in own.items():
        expected = theirs if key.startswith("backbone.") else fresh
        assert torch.equal(value, expected[key]), key
    assert main([*tiny, "--stage", "seg", "--init", f"backbone:{finished / 'pretrain.pt'}"]) == 0
    assert "neck and head: random weights" in capsys.readouterr().out
    with pytest.raises(UserError, match="none is not there"):
        main([*tiny, "--stage", "seg", "--name", "other", "--init", "backbone:none"])


def test_the_weights_of_this_repository_fit_the_default_network() -> None:
    path = stage0_path("fast_scnn")
    assert path is not None
    assert path.stat().st_size < 6 << 20
    content = load(path)
    assert content["format"] == FORMAT
    assert all(v.dtype in (torch.float16, torch.int64) for v in content["model"].values())
    assert ModelConfig(**content["architecture"]) == Config().model
    model = load_model(path)
    assert sum(len(v) for v in model.classes.values()) == 210 + 211 + 210
    with torch.inference_mode():
        outputs = model(torch.rand(1, 3, 320, 320))
    assert torch.isfinite(outputs["pred_boxes"]).all()
    assert stage0_path("no_such_backbone") is None


@pytest.mark.parametrize(("options", "says"), [([], "starts from random"), (["--init", "stage0"], "backbone only")])
def test_the_default_start_is_stage_0(
    options: list[str], says: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--stage", "seg", *options]) == 0
    assert says in capsys.readouterr().out
