"""Dashboards on Weights & Biases, without network: every panel shows something that runs log."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.settings.config import TrackConfig
from engine.storage.errors import UserError, run_cli
from engine.tracking.tracker import Tracker
from engine.train import main as train
from engine.training.summary import drops
from scripts.wandb_dashboard import KINDS, dashboard, main
from tests.engine.conftest import drawn, tiny  # noqa: F401
from tests.engine.tracking.test_tracker import ROWS, history, read_back


def spec(kind: str) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces")
    text = dashboard(kind, "mine", "me", "onehead")._to_model().model_dump_json(by_alias=True, exclude_none=True)
    found: dict[str, Any] = json.loads(text)["spec"]["section"]
    return found


def panels(kind: str) -> Iterator[dict[str, Any]]:
    for section in spec(kind)["panelBankConfig"]["sections"]:
        yield from section["panels"]


def shown(panel: dict[str, Any]) -> set[str]:
    """Names, or beginnings of names, of what a panel shows."""
    config = panel["config"]
    names = {*config.get("metrics", []), *config.get("mediaKeys", [])}
    if config.get("useMetricRegex"):
        names.add(config["metricRegex"].removeprefix("^"))
    return names | set(re.findall(r'"val": "([^"]+)"', json.dumps(config)))  # of a table


@pytest.fixture
def logged(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:  # noqa: F811
    """Names of all that a chain logs, with its losses, remedies, pictures and tables."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train([*tiny, "--stage", "seg", "--track.wandb", "offline"]) == 0
    tracker = Tracker(tmp_path / "run", TrackConfig(wandb="offline"), {"order": ["seg", "det", "cls"]}, [])
    tracker.log({**ROWS[1], "losses": {"ewc": 1.0}}, 15)
    tracker.close(drops([r for r in ROWS if "mIoU" in r]))
    records = [*read_back(tmp_path / "runs" / "tiny"), *read_back(tmp_path / "run")]
    summaries = [item for r in records if r.WhichOneof("record_type") == "summary" for item in r.summary.update]
    names = {key for row in history(records) for key in row}
    return names | {"/".join(item.nested_key) or item.key for item in summaries}


def test_every_panel_shows_what_runs_log(logged: set[str]) -> None:
    for kind in KINDS:
        names = [name for panel in panels(kind) for name in shown(panel)]
        assert len(names) > 10
        for name in names:
            assert any(key.startswith(name) for key in logged), f"{kind}: {name}"


def test_a_dashboard_shows_the_runs_that_are_named_over_the_steps_of_the_chain() -> None:
    for kind, key in (("chain", "displayName"), ("comparison", "group")):
        (runs,) = spec(kind)["runSets"]
        assert [(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]] == [(key, "mine")]
        lines = [panel["config"] for panel in panels(kind) if panel["viewType"] == "Run History Line Plot"]
        assert {line["xAxis"] for line in lines} == {"global_step"}
        assert {"curves/mIoU", "curves/mAP", "curves/AP50", "curves/Top-1"} <= {m for c in lines for m in c["metrics"]}


def test_what_is_missing_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["chain", "mine", "--entity", "me"]
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody is logged in
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces")
    assert run_cli(main, words) == 2
    said = capsys.readouterr().err  # why is wandb's own: no key, or no network
    assert "error: the dashboard was not saved (" in said
    assert "`wandb login` first, see --entity" in said
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match="pip install wandb-workspaces"):
        main(words)
