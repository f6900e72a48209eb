"""A run that is killed and resumed ends bit-identical to one that was left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.storage.checkpoint import load, save
from engine.storage.errors import UserError
from engine.train import main
from engine.training.stage import StageLoop


class Killed(Exception):
    """Stands for SIGKILL inside one process: nothing after it runs."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    original, left = StageLoop.step, [steps]

    def step(self: StageLoop, batch, number):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(self, batch, number)

    monkeypatch.setattr(StageLoop, "step", step)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested values are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def assert_same_end(a: Path, b: Path) -> None:
    for stage in ("seg", "det", "cls"):
        one, other = load(a / f"{stage}.pt"), load(b / f"{stage}.pt")
        assert equal(one["model"], other["model"]), stage
        assert equal(one["remedies"], other["remedies"]), stage
        assert (a / f"{stage}.json").read_bytes() == (b / f"{stage}.json").read_bytes()  # what the report shows of it
    rows = [[json.loads(line) for line in (x / "metrics.jsonl").open()] for x in (a, b)]
    for row in (*rows[0], *rows[1]):
        del row["seconds"], row["peak_memory_mib"]
    assert rows[0] == rows[1]
    assert not (a / "last.pt").exists()


def test_the_summary_of_a_resumed_run_names_the_most_memory_that_any_process_used(
    tiny: list[str], untouched: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(untouched, folder)
    content = load(folder / "cls.pt")
    assert all(row["peak_memory_mib"] > 0 for row in content["rows"])
    content["rows"][1]["peak_memory_mib"] = 1e6
    save(folder / "cls.pt", content)
    (folder / "summary.json").unlink()  # killed before it was written
    main([*tiny, "--resume"])
    assert json.loads((folder / "summary.json").read_text())["peak_memory_mib"] == 1e6


@pytest.mark.parametrize("steps", [0, 2, 4, 9, 17])
def test_killed_at_any_step_and_resumed(steps: int, tiny: list[str], untouched: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            main(tiny)
    main([*tiny, "--resume"])
    assert_same_end(tmp_path / "runs" / "tiny", untouched)


@pytest.mark.parametrize("change", [["--optim.weight_decay", "0"], ["--optim.backbone_lr", "0.5"]])
def test_other_groups_of_weights_cannot_be_resumed(change: list[str], tiny: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            main(tiny)
    with pytest.raises(UserError, match=r"last.pt holds another optimiser, or one with other groups of weights"):
        main([*tiny, *change, "--resume"])


def test_a_weight_decay_changed_before_a_resume_is_the_one_that_acts(
    tiny: list[str], untouched: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            main(tiny)
    found: list[set[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = StageLoop.step

        def step(self: StageLoop, batch, number):  # type: ignore[no-untyped-def]
            found.append({group["weight_decay"] for group in self.optimizer.param_groups})
            return original(self, batch, number)

        patch.setattr(StageLoop, "step", step)
        main([*tiny, "--optim.weight_decay", "0.3", "--resume"])
    assert all(0.3 in decays and 0.05 not in decays for decays in found)
    weights = [load(folder / "cls.pt")["model"] for folder in (tmp_path / "runs" / "tiny", untouched)]
    assert not equal(*weights)


def test_a_stage_that_has_had_as_many_epochs_as_are_asked_for_is_not_resumed(tiny: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 3)  # in the second epoch of seg
        with pytest.raises(Killed):
            main(tiny)
    file = tmp_path / "runs" / "tiny" / "last.pt"
    before = file.read_bytes()
    had = load(file)["epoch"]
    with pytest.raises(UserError, match=rf"optim.epochs.seg is {had}, but .*last.pt has had {had}: give {had + 1} or"):
        main([*tiny, "--optim.epochs.seg", str(had), "--resume"])
    assert file.read_bytes() == before


def test_rows_of_joint_training_in_the_same_folder_do_not_hide_those_of_the_stages(
    tiny: list[str], tmp_path: Path
) -> None:
    for stage in ("joint", "seg", "det"):
        main([*tiny, "--stage", stage, "--optim.epochs.joint", "1"])
    rows = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "metrics.jsonl").open()]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == ["joint", "seg", "det"]


def test_killed_between_the_stage_checkpoint_and_the_removal_of_last(
    tiny: list[str], untouched: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 9)  # in the second epoch of det
        with pytest.raises(Killed):
            main(tiny)
    folder = tmp_path / "runs" / "tiny"
    stale = (folder / "last.pt").read_bytes()
    main([*tiny, "--stage", "det", "--resume"])
    (folder / "last.pt").write_bytes(stale)
    main([*tiny, "--resume"])
    assert_same_end(folder, untouched)


def test_killed_twice_in_the_same_stage(tiny: list[str], untouched: Path, tmp_path: Path) -> None:
    for steps in (7, 2):
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed):
                main([*tiny, "--resume"])
    main([*tiny, "--resume"])
    assert_same_end(tmp_path / "runs" / "tiny", untouched)


REMEDIES = (  # noqa: SIM905
    "--continual.ewc 1 --continual.l2sp 0.1 --continual.lwf 1 --continual.distill_features 1 --continual.average 0.2 "
    "--continual.compose 0.5 --continual.replay_sets 2 --continual.replay_boxes true --continual.distill_boxes true "
    "--continual.distill 1 --optim.epochs.cls 1"
).split()


def test_all_remedies_together_go_on_where_they_were(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *REMEDIES]
    main([*arguments, "--name", "whole"])
    rows = [json.loads(line) for line in (tmp_path / "runs" / "whole" / "metrics.jsonl").open()]
    terms = {"ewc", "l2sp", "lwf_seg", "lwf_det", "distill_seg", "distill_det", "distill_features"}
    assert not {*terms, "replay_seg"} & set(rows[0]["losses"])
    assert {*terms, "replay_seg"} <= set(rows[-1]["losses"])
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 10)  # in the second epoch of det
        with pytest.raises(Killed):
            main(arguments)
    main([*arguments, "--resume"])
    assert_same_end(tmp_path / "runs" / "tiny", tmp_path / "runs" / "whole")


def test_a_remedy_switched_on_late_collects_what_it_missed(tiny: list[str], tmp_path: Path) -> None:
    ewc = ["--continual.ewc", "1"]
    for name, first in (("early", ewc), ("late", ["--continual.replay", "0"])):
        main([*tiny, *first, "--name", name, "--stage", "seg"])
        main([*tiny, *ewc, "--name", name, "--stage", "det"])
    early, late = (load(tmp_path / "runs" / name / "det.pt") for name in ("early", "late"))
    assert load(tmp_path / "runs" / "late" / "seg.pt")["remedies"].keys() == {"distill"}
    assert len(late["remedies"]["replay"]["buffer"]) == 6
    assert equal(early["remedies"], late["remedies"])
    assert equal(early["model"], late["model"])


def test_a_finished_run_is_not_trained_again(tiny: list[str], untouched: Path, tmp_path: Path) -> None:
    main(tiny)
    before = {p.name: p.read_bytes() for p in (tmp_path / "runs" / "tiny").glob("*.pt")}
    main([*tiny, "--resume"])
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "runs" / "tiny").glob("*.pt")}


def test_a_finished_run_is_left_as_it_is_whatever_the_settings_are_now(
    tiny: list[str], untouched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(untouched, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main([*tiny, "--resume", "--seed", "7", "--optim.lr", "0.5"]) == 0
    assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    printed = capsys.readouterr().out
    assert f"stage cls: done before, {folder}/cls.pt" in printed
    assert "give another --name to train with optim.lr: 0.001 -> 0.5, seed: 0 -> 7" in printed
    assert "Top-1" in printed  # the table


def test_settings_changed_before_a_resume_are_named(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            main(tiny)
    capsys.readouterr()
    main([*tiny, "--stage", "seg", "--resume", "--optim.clip", "1.5"])
    assert "note: optim.clip: 2.0 -> 1.5 since the run was interrupted" in capsys.readouterr().out
