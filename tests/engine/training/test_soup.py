"""A stage that is trained several times from one start ends with the mean of what it ended with each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.storage.checkpoint import load
from engine.storage.errors import UserError
from engine.train import main
from engine.training.soup import Soup
from engine.training.stage import StageLoop
from tests.engine.training.test_resume import Killed, equal, kill_after

SOUP = ["--stage", "seg", "--optim.soup", "2"]


def test_the_mean_of_weights_and_statistics_but_not_of_counts() -> None:
    norm = nn.BatchNorm2d(2)
    soup = Soup(norm)
    for weight, mean, batches in (([1.0, 2.0], [4.0, 0.0], 3), ([3.0, 6.0], [0.0, -2.0], 5)):
        norm.load_state_dict(
            {
                **norm.state_dict(),
                "weight": torch.tensor(weight),
                "running_mean": torch.tensor(mean),
                "num_batches_tracked": torch.tensor(batches),
            }
        )
        soup.add(norm)
    assert soup.mean["weight"].tolist() == [2, 4]
    assert soup.mean["running_mean"].tolist() == [2, -1]
    assert soup.mean["num_batches_tracked"] == 5
    assert soup.start["weight"].tolist() == [1, 1]  # as it was, whatever the model became


def test_every_training_begins_alike_with_other_batches_and_the_stage_ends_with_their_mean(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, rates, ends = [], [], []
    step, add = StageLoop.step, Soup.add

    def watched(self: StageLoop, batch, number):  # type: ignore[no-untyped-def]
        if number == 0:
            starts.append({k: v.clone() for k, v in self.model.state_dict().items()})
            assert not self.optimizer.optimizer.state
        rates.append(self.highest_rate())
        return step(self, batch, number)

    def added(self: Soup, model: nn.Module) -> None:
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
        add(self, model)

    monkeypatch.setattr(StageLoop, "step", watched)
    monkeypatch.setattr(Soup, "add", added)
    main([*tiny, *SOUP])
    assert equal(*starts)
    assert rates[: len(rates) // 2] == rates[len(rates) // 2 :]
    assert not equal(*ends)
    ended = load(tmp_path / "runs" / "tiny" / "seg.pt")["model"]
    assert all(torch.allclose(ended[k], (ends[0][k] + ends[1][k]) / 2) for k in ended if ended[k].is_floating_point())
    rows = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "metrics.jsonl").open()]
    assert ["mIoU" in row for row in rows] == [False, True, False, True]  # each training's end, and the mean


def test_weights_that_did_not_move_stay_to_the_bit() -> None:
    layer = nn.Linear(50, 50)
    before = layer.weight.clone()
    soup = Soup(layer)
    for _ in range(6):
        soup.add(layer)
    assert torch.equal(soup.mean["weight"], before)


def test_the_first_training_is_scored_as_it_ended_and_the_second_is_no_further_training(
    tiny: list[str], tmp_path: Path
) -> None:
    for name, options in (("once", ["--stage", "seg"]), ("twice", SOUP)):
        main([*tiny, *options, "--name", name])
    once, twice = ([json.loads(x) for x in (tmp_path / "runs" / n / "metrics.jsonl").open()] for n in ("once", "twice"))
    for row in (*once, *twice):
        del row["seconds"], row["peak_memory_mib"]
    assert twice[:2] == once


def test_later_stages_with_frozen_statistics_and_remedies(tiny: list[str], tmp_path: Path) -> None:
    options = ["--optim.soup", "3", "--continual.freeze_statistics", "later", "--continual.average", "0.2"]
    main([*tiny, *options])
    first, second = (load(tmp_path / "runs" / "tiny" / f"{stage}.pt")["model"] for stage in ("seg", "det"))
    statistics = [name for name in first if name.endswith("running_var")]
    assert statistics
    assert all(torch.equal(first[name], second[name]) for name in statistics)
    assert (tmp_path / "runs" / "tiny" / "cls.pt").is_file()


@pytest.mark.parametrize("steps", [4, 6, 8, 11])
def test_killed_in_any_of_its_trainings_and_resumed(steps: int, tiny: list[str], tmp_path: Path) -> None:
    main([*tiny, *SOUP, "--name", "whole"])
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            main([*tiny, *SOUP])
    main([*tiny, *SOUP, "--resume"])
    ends = [load(tmp_path / "runs" / name / "seg.pt") for name in ("whole", "tiny")]
    assert equal(ends[0]["model"], ends[1]["model"])


@pytest.mark.parametrize("change", [["--optim.soup", "1"], ["--optim.epochs.seg", "3"]])
def test_another_number_of_trainings_or_epochs_cannot_be_resumed(change: list[str], tiny: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            main([*tiny, *SOUP])
    with pytest.raises(
        UserError, match=r"stage seg was interrupted with optim.soup 2 and optim.epochs.seg 2: keep both"
    ):
        main([*tiny, *SOUP, *change, "--resume"])
