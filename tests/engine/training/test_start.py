"""Where weights come from, as remedies see it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.settings.config import STAGE0, Config
from engine.storage import checkpoint
from engine.storage.checkpoint import WEIGHTS, load, load_model, load_pretrained, save
from engine.train import main
from engine.training.start import start_of
from scripts.publish_weights import main as publish
from tests.engine.conftest import TINY, run_of


@pytest.fixture(scope="module")
def whole(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the whole tiny network."""
    runs = tmp_path_factory.mktemp("runs")
    assert main([*TINY, "--data.root", str(drawn), "--runs", str(runs), "--name", "first", "--stage", "seg"]) == 0
    return runs / "first" / "seg.pt"


def test_every_stage_sees_the_backbone_that_the_run_began_with(tiny: list[str], whole: Path, tmp_path: Path) -> None:
    arguments = [*tiny, "--runs", str(tmp_path), "--name", "r", "--init", str(whole), "--continual.hold", "1"]
    assert main([*arguments, "--stage", "seg"]) == 0
    other = [*arguments, "--init", "null"]  # what later stages are told about a start does not count
    theirs = load_model(whole)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for held in (run_of(arguments).begin("seg", None).pretrained, run_of(other).begin("det", None).pretrained):
        assert held is not None
        torch.testing.assert_close(held.maps(image), theirs.backbone_maps(image))
        assert not any(p.requires_grad for p in held.parameters())


def test_random_weights_are_no_teacher(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of([*tiny, "--init", "null", "--continual.hold", "1"])
    assert run.begin("seg", None).pretrained is None
    assert "hold and recall do nothing, the run began with random weights" in capsys.readouterr().out


def test_the_backbone_alone_of_a_checkpoint_can_be_held_but_names_nothing(
    tiny: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of([*tiny, "--init", f"backbone:{whole}", "--continual.recall", "1"])
    held = run.begin("seg", None).pretrained
    assert held is not None
    assert held.readout is None
    assert "recall does nothing" in capsys.readouterr().out


def test_what_began_with_stage_0_names_pictures_as_stage_0_does(tiny: list[str], whole: Path, tmp_path: Path) -> None:
    content = load(whole)
    content["config"]["init"] = STAGE0
    save(tmp_path / "warm.pt", content)
    held = run_of([*tiny, "--init", str(tmp_path / "warm.pt"), "--continual.recall", "1"]).begin("seg", None).pretrained
    assert held is not None
    assert held.readout is not None
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(held.maps(image), load_model(whole).backbone_maps(image))
    stage0 = load_pretrained(WEIGHTS / "fast_scnn_stage0.pt", "fast_scnn").readout
    assert stage0 is not None
    assert torch.equal(held.readout.linear.weight, stage0.linear.weight)
    assert not any(p.requires_grad for p in held.parameters())


@pytest.mark.parametrize(("dim", "found"), [("32", "new classes: none"), ("16", "neck and head: random weights")])
def test_stage_0_with_neck_and_head_is_taken_whole_where_these_fit(
    dim: str,
    found: str,
    tiny: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its readouts lie beside the network, for `recall`."""
    stage0 = str(WEIGHTS / "fast_scnn_stage0.pt")
    assert publish([str(whole), str(tmp_path / "fast_scnn_stage0.pt"), "--stage0", stage0]) == 0
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    arguments = [*tiny, "--init", STAGE0, "--model.dim", dim, "--continual.recall", "1"]
    assert main([*arguments, "--stage", "seg", "--optim.epochs.seg", "1"]) == 0
    assert found in capsys.readouterr().out
    both = str(tmp_path / "fast_scnn_stage0.pt")
    assert start_of(replace(Config(), init=both)) == ("whole", both)
    assert start_of(replace(Config(), init=f"backbone:{both}")) == ("backbone", both)
    held, before = run_of(arguments).begin("seg", None).pretrained, load_pretrained(stage0, "fast_scnn").readout
    assert held is not None
    assert held.readout is not None
    assert before is not None
    step = float(before.linear.weight.abs().max()) / 127
    torch.testing.assert_close(held.readout.linear.weight, before.linear.weight, atol=0.51 * step, rtol=0)
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(held.maps(image), load_model(whole).backbone_maps(image), atol=0.05, rtol=0.05)


def test_without_the_remedy_nothing_is_loaded(tiny: list[str], whole: Path) -> None:
    assert run_of([*tiny, "--init", str(whole)]).begin("seg", None).pretrained is None


@pytest.mark.parametrize("remedy", ["hold", "recall"])
def test_remedies_of_the_start_are_off_when_all_tasks_are_learnt_at_once(
    remedy: str, tiny: list[str], whole: Path
) -> None:
    run = run_of([*tiny, "--init", str(whole), f"--continual.{remedy}", "1"])
    assert run.begin("seg", None).pretrained is not None
    assert run.begin("joint", None).pretrained is None
