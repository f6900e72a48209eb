"""The comparison: baselines once, chains from them, drops, one table from the files alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data.types import TASKS
from engine.compare import cells, chosen, main, resolved, stage_results, starts_like_baseline
from engine.evaluation.metrics import HEADLINE
from engine.experiments.cells import read_grid
from engine.experiments.tables import comparison_table
from engine.storage.errors import UserError
from engine.train import main as train
from tests.engine.conftest import TINY, nested
from tests.engine.report.outline import Outline

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def compared(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Grid file and results folder of a comparison that ran through."""
    root = tmp_path_factory.mktemp("compare")
    (root / "tiny.yaml").write_text(yaml.safe_dump(nested([*TINY, "--data.root", str(drawn)])))
    grid = {
        "name": "tiny",
        "config": str(root / "tiny.yaml"),
        "seeds": [0],
        "variants": {
            "ewc": {"continual.distill": 0, "continual.replay": 0, "continual.ewc": 1.0},
            "backwards": {"order": ["cls", "det", "seg"]},
        },
    }
    (root / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        # in this process: imports take longer
        patch.setattr("engine.experiments.cells.train_in_subprocess", lambda _, words: train(words))
        assert main([str(root / "grid.yaml"), "--results", str(root / "results"), "--runs", str(root / "runs")]) == 0
    return root / "grid.yaml", root / "results"


def test_baselines_come_before_the_chains_that_start_from_them(compared: tuple[Path, Path]) -> None:
    names = [c.name for c in cells(read_grid(compared[0]))]
    assert sorted(names[:3]) == ["single-task-cls-s0", "single-task-det-s0", "single-task-seg-s0"]
    assert names[3:] == ["ewc-all-s0", "backwards-all-s0"]


@pytest.mark.parametrize("setting", ["continual.hold", "continual.recall", "optim.shared_lr.cls", "optim.lr"])
def test_a_first_stage_that_is_trained_otherwise_is_no_baseline(setting: str, compared: tuple[Path, Path]) -> None:
    grid = read_grid(compared[0])
    base, *_, chain = cells(grid)
    slow = replace(chain, settings={**chain.settings, setting: 0.5})
    assert starts_like_baseline(grid, base, "seg")
    assert starts_like_baseline(grid, chain, "cls")
    assert starts_like_baseline(grid, replace(chain, settings={**chain.settings, "optim.probe": 0.1}), "cls")
    assert not starts_like_baseline(grid, slow, "cls")


TAUGHT = {"continual.expert": 1.0, "continual.expert_cls": "cls.pt"}


def test_a_first_stage_with_an_expert_is_no_baseline(compared: tuple[Path, Path]) -> None:
    grid = read_grid(compared[0])
    chain = cells(grid)[-1]
    assert not starts_like_baseline(grid, replace(chain, settings={**chain.settings, **TAUGHT}), "cls")


@pytest.mark.parametrize("in_file", [True, False])
def test_a_baseline_has_no_expert(in_file: bool, compared: tuple[Path, Path], tmp_path: Path) -> None:
    grid = read_grid(compared[0])
    if in_file:
        words = [word for key, value in TAUGHT.items() for word in (f"--{key}", str(value))]
        (tmp_path / "taught.yaml").write_text(yaml.safe_dump(nested(words)))
        grid = replace(grid, config=str(tmp_path / "taught.yaml"))
    else:
        grid = replace(grid, settings={**grid.settings, **TAUGHT})
    base, *_, chain = (resolved(grid, cell).continual for cell in cells(grid))
    assert (base.expert, chain.expert) == (0, 1)


def test_the_order_of_the_configuration_counts_and_a_baseline_has_its_own(compared: tuple[Path, Path]) -> None:
    grid = read_grid(compared[0])
    base, *_, chain = cells(replace(grid, settings={"order": ["cls", "det", "seg"]}))
    assert "order" not in base.settings
    assert resolved(grid, chain).order == ["cls", "det", "seg"]


@pytest.mark.parametrize("name", ["compare", "final"])
def test_recorded_results_are_those_of_the_grid(name: str) -> None:
    for cell in cells(read_grid(CONFIGS / f"{name}.yaml")):
        record = CONFIGS.parent / "results" / name / f"{cell.name}.json"
        if record.is_file():
            own = {k: v for k, v in cell.settings.items() if not k.startswith("track.")}
            assert json.loads(record.read_text())["settings"] == json.loads(json.dumps(own)), cell.name


def test_a_comparison_of_single_stages_is_refused(compared: tuple[Path, Path], tmp_path: Path) -> None:
    grid = yaml.safe_load(compared[0].read_text()) | {"stages": ["seg"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(UserError, match=r"stages is \['seg'\], but a comparison trains all: leave the line out"):
        main([str(tmp_path / "grid.yaml"), "--results", str(tmp_path)])


def test_a_seed_is_not_short_for_seeds(compared: tuple[Path, Path]) -> None:
    with pytest.raises(
        UserError, match=r"--seed: the grid's file gives it to every training; .* \(some seeds: --seeds\)"
    ):
        main([str(compared[0]), "--seed", "0"])


def test_baselines_have_no_remedy_and_full_rates(compared: tuple[Path, Path]) -> None:
    base = cells(replace(read_grid(compared[0]), settings={"continual.recall": 2.0, "optim.shared_lr.cls": 0.1}))[0]
    assert base.settings["continual.recall"] == 0
    assert base.settings["optim.shared_lr.cls"] == 1.0


def test_a_chain_takes_over_its_first_stage(compared: tuple[Path, Path]) -> None:
    folder = compared[1] / "tiny"
    read = {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}
    assert len(read) == 5
    for variant, first in (("ewc", "seg"), ("backwards", "cls")):
        base, chain = read[f"single-task-{first}-s0"], read[f"{variant}-all-s0"]
        assert chain["rows"][0] == base["rows"][0]
        assert chain["rows"][0]["stage"] == first
        assert len(chain["rows"]) == 3


def test_one_cell_brings_its_baselines(compared: tuple[Path, Path]) -> None:
    every = cells(replace(read_grid(compared[0]), seeds=[0, 1]))
    names = [c.name for c in chosen(every, "ewc-all-s1")]
    assert sorted(names[:3]) == ["single-task-cls-s1", "single-task-det-s1", "single-task-seg-s1"]
    assert names[3:] == ["ewc-all-s1"]
    assert chosen(every, None) == every
    with pytest.raises(UserError, match="--only x: there is no such cell; choose one of single-task-"):
        chosen(every, "x")


def test_a_joint_training_is_a_cell_of_its_own(compared: tuple[Path, Path]) -> None:
    grid = replace(read_grid(compared[0]), variants={"joint": {"stage": "joint"}})
    assert [(c.name, c.settings) for c in cells(grid)[3:]] == [("joint-joint-s0", {})]


def test_drops_are_against_the_single_task_baseline(compared: tuple[Path, Path]) -> None:
    folder = compared[1] / "tiny"
    chain = json.loads((folder / "ewc-all-s0.json").read_text())
    base = json.loads((folder / "single-task-seg-s0.json").read_text())
    drop = chain["drops"]["mIoU"]
    assert drop["before"] == pytest.approx(base["rows"][-1]["mIoU"], abs=1e-4)
    assert drop["after"] == pytest.approx(chain["rows"][-1]["mIoU"], abs=1e-4)
    low, high = drop["points_interval"]
    assert low <= drop["points"] <= high
    for row in chain["rows"]:  # and against what each task had right after its own stage
        metric = HEADLINE[row["stage"]]
        assert chain["own_drops"][metric]["before"] == pytest.approx(row[metric], abs=1e-4)
        assert chain["own_drops"][metric]["after"] == pytest.approx(chain["rows"][-1][metric], abs=1e-4)
    assert chain["own_drops"]["Top-1"]["points"] == 0  # of the last stage nothing came after


def test_table_and_plot_come_from_the_files_alone(compared: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    grid, results = compared
    table = results / "tiny" / "table.md"
    text = table.read_text()
    picture = results / "tiny" / "comparison.png"
    assert picture.stat().st_size > 5000
    table.unlink()
    assert main([str(grid), "--results", str(results), "--runs", str(grid.parent / "nothing")]) == 0
    assert table.read_text() == text
    for variant in ("single-task", "ewc", "backwards"):
        assert f"\n| {variant} |" in text


def test_pages_of_the_comparison_and_of_its_chains(compared: tuple[Path, Path]) -> None:
    page = (compared[1] / "tiny" / "report.html").read_text()
    assert [row[0] for row in Outline(page).tables["final"]] == ["variant", "single-task", "backwards", "ewc"]
    assert "python -m engine.compare " in page
    for variant, tasks in (("ewc", TASKS), ("backwards", reversed(TASKS))):
        page = (compared[0].parent / "runs" / f"tiny-{variant}-all-s0" / "report.html").read_text()
        base = json.loads((compared[1] / "tiny" / "single-task-det-s0.json").read_text())["rows"][-1]["mAP"]
        drops = {row[0]: row for row in Outline(page).tables["drops"]}
        assert drops["detection"][-4] == f"{base:.3f}"
        head, *rows = Outline(page).tables["pictures"]
        assert head[1:] == [f"after stage {task}" for task in tasks]
        assert "not recorded" not in {cell for row in rows for cell in row}  # the first stage's came with its weights


def test_a_grid_goes_on_where_only_its_results_are(
    compared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compared[1], tmp_path / "results")
    folder = tmp_path / "results" / "tiny"
    stopped = json.loads((folder / "ewc-all-s0.json").read_text())  # after training, before drops were scored
    (folder / "ewc-all-s0.json").write_text(json.dumps({k: v for k, v in stopped.items() if "drops" not in k}))
    (folder / "backwards-all-s0.json").unlink()
    monkeypatch.setattr("engine.experiments.cells.train_in_subprocess", lambda _, words: train(words))
    assert main([str(compared[0]), "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]) == 0
    read = {name: json.loads((folder / f"{name}-all-s0.json").read_text()) for name in ("ewc", "backwards")}
    for key in ("drops", "own_drops"):
        for metric, drop in read["ewc"][key].items():
            assert drop["points_interval"] is None
            assert drop["points"] == pytest.approx(stopped[key][metric]["points"], abs=0.02)
    assert [row["stage"] for row in read["backwards"]["rows"]] == ["cls", "det", "seg"]  # its first stage, too
    assert read["backwards"]["drops"]["Top-1"]["points_interval"] is None  # of weights that are elsewhere
    assert read["backwards"]["own_drops"]["Top-1"]["points_interval"] is not None
    row = next(line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| ewc | 1 |"))
    assert f"| {-read['ewc']['drops']['mIoU']['points']:+.1f} |" in row
    home = str(compared[0].parent / "runs")  # back where the weights are
    assert main([str(compared[0]), "--results", str(tmp_path / "results"), "--runs", home]) == 0
    assert json.loads((folder / "ewc-all-s0.json").read_text()) == stopped


def test_weights_of_another_training_are_not_scored(compared: tuple[Path, Path], tmp_path: Path) -> None:
    record, folder = compared[1] / "tiny" / "ewc-all-s0.json", compared[0].parent / "runs" / "tiny-ewc-all-s0"
    assert [end.weights for end in stage_results(record, folder).values()] == [
        folder / f"{s}.pt" for s in ("seg", "det", "cls")
    ]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(record.read_text()), "minutes": 1e6}))
    assert [end.weights for end in stage_results(other, folder).values()] == [None] * 3


def test_table_by_hand() -> None:
    def chain(seed: int, after: float) -> dict:
        drop = {"before": 0.5, "after": after, "points": 100 * (0.5 - after), "relative": (0.5 - after) / 0.5}
        drop |= {"points_interval": [0.0, 8.0], "relative_interval": [0.0, 0.2]}
        rows = [
            {"stage": "seg", "mIoU": 0.5, "mAP": 0.0, "AP50": 0.0, "Top-1": 0.1},
            {"stage": "det", "mIoU": after, "mAP": 0.2, "AP50": 0.4, "Top-1": 0.1},
        ]
        drops = {"mIoU": drop, "mAP": {**drop, "points": 0.0, "relative": 0.0}, "Top-1": {**drop, "points": 0.0}}
        drops["Top-1"]["relative"] = 0.0
        return {"variant": "x", "seed": seed, "rows": rows, "drops": drops, "minutes": 2.0, "peak_memory_mib": 100.0}

    text = comparison_table([chain(0, 0.48), chain(1, 0.46)])
    row = next(line for line in text.splitlines() if line.startswith("| x | 2 |"))
    assert "0.470 (0.460-0.480) | -3.0 (-8.0 to 0.0) | -6.0 %" in row
    assert "1 of 2 | -3.0 | 2.0 | 100 |" in row  # only 4 % of the first seed pass

    def own(cell: dict, points: float) -> dict:
        return {**cell, "own_drops": {"mIoU": {"before": 0.5, "points": points, "relative": points / 50}}}

    text = comparison_table([own(chain(0, 0.48), 6.0), own(chain(1, 0.46), 7.0)])
    assert " | 1 of 2 / 0 of 2 | " in text


def test_the_sweep_has_the_cells_of_the_grid() -> None:
    sweep = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())
    chains = [c.name for c in cells(read_grid(CONFIGS / "compare.yaml")) if c.variant != "single-task"]
    assert sweep["parameters"]["only"]["values"] == chains
