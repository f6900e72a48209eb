"""A run's report holds all that it promises, needs nothing from elsewhere, and is made from the run's folder alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from engine.report.chain import commands, drop_rows, write_report
from engine.report.curves import loss_terms
from engine.settings.config import Config, changed_settings, to_dict
from models.postprocess import THRESHOLD
from tests.engine.report.outline import Outline

SECTIONS = [
    "Forgetting curves",
    "Changes",
    "Classes",
    "Loss terms",
    "The same pictures after every stage",
    "Settings that differ from the built-in defaults",
]


@pytest.fixture
def run(untouched: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(untouched, tmp_path / "tiny"))


def written(run: Path, alone: dict[str, float | None] | None = None) -> str:
    write_report(run, alone)
    return (run / "report.html").read_text(encoding="ascii")


def test_every_chain_ends_with_a_page_that_stands_alone(untouched: Path) -> None:
    page = (untouched / "report.html").read_text(encoding="ascii")
    outline = Outline(page)
    assert outline.headings == SECTIONS
    assert "://" not in page
    assert all(address.startswith(("data:image/", "#")) for address in outline.addresses)
    assert {a[1:] for a in outline.addresses if a.startswith("#")} <= set(outline.ids)
    summary = json.loads((untouched / "summary.json").read_text())
    for fact in ("commit", "machine", "dtype"):
        assert summary[fact] in page
    assert "val, 5 images" in page


def test_tables_hold_the_figures_of_the_run(untouched: Path) -> None:
    tables = Outline((untouched / "report.html").read_text()).tables
    rows = [json.loads(line) for line in (untouched / "metrics.jsonl").open()]
    ends = [row for row in rows if "mIoU" in row]
    assert [row[0] for row in tables["ends"][1:]] == ["seg", "det", "cls"]
    for row, end in zip(tables["ends"][1:], ends):
        assert row[1:4] == [f"{end[metric]:.3f}" for metric in ("mIoU", "mAP", "Top-1")]
    assert [row[0] for row in tables["drops"][2:]] == ["segmentation", "detection", "classification"]
    assert tables["drops"][2][3] == f"{ends[0]['mIoU']:.3f}"
    losses = {row[0]: row[1:] for row in tables["losses"][1:]}
    assert losses["cls_ce"][:2] == ["", ""]
    assert losses["cls_ce"][2] == f"{rows[4]['losses']['cls_ce']:.3f} → {rows[5]['losses']['cls_ce']:.3f}"
    settings = {row[0]: row[1:] for row in tables["settings"][1:]}
    assert settings["data.size"] == ["256", "64"]
    assert settings["init"] == ["stage0", "null"]
    assert not {"name", "runs", "seed"} & settings.keys()


def test_the_same_eight_pictures_are_there_after_every_stage(untouched: Path) -> None:
    outline = Outline((untouched / "report.html").read_text())
    head, *rows = outline.tables["pictures"]
    assert head == ["annotated", "after stage seg", "after stage det", "after stage cls"]
    assert len(rows) == 8
    assert [re.findall(r"\((seg|det|cl)", row[0])[-1] for row in rows] == ["seg"] * 3 + ["det"] * 3 + ["cl"] * 2
    assert all("label: " in cell for row in rows for cell in row[1:])
    text = " ".join((untouched / "report.html").read_text().split())
    assert f"Boxes of a score below {THRESHOLD} and" in text
    photos = [a for a in outline.addresses if a.startswith("data:image/jpeg")]
    assert len(photos) == len(set(photos)) == 8  # each is in the page once


def test_drops_are_judged_by_both_readings() -> None:
    tasks = {"det": {"metric": "mAP", "after_own_stage": 0.20, "final": 0.192}}
    row = drop_rows(tasks, {"mAP": 0.25})[0]
    assert row["own"]["points"] == pytest.approx(0.8)
    assert row["own"]["relative"] == pytest.approx(0.04)
    assert row["own"]["passed"]
    assert row["alone"]["relative"] == pytest.approx(0.232)
    assert not row["alone"]["passed"]
    assert drop_rows(tasks, {"mAP": None})[0]["alone"] is None
    assert not drop_rows(tasks, {"mAP": 0.0})[0]["alone"]["passed"]  # nothing was there to be kept


def test_single_task_values_are_shown_where_they_are_known(run: Path) -> None:
    before = Outline(written(run)).tables["drops"]
    assert [row[-1] for row in before[2:]] == ["not known"] * 3
    page = written(run, {"mIoU": 1e-6, "mAP": 0.5, "Top-1": None})
    rows = Outline(page).tables["drops"][2:]
    assert rows[0][-1] == "✓ within 5 %"
    assert rows[1][-4] == "0.500"
    assert rows[1][-1] == "✗ above 5 %"
    assert rows[1][-2].startswith("-")
    assert rows[2][-1] == "not known"
    assert Outline(written(run, {"mIoU": 0.0})).tables["drops"][2][-1] == "nothing was learnt"
    assert "of a single-task network: 1 of 2." in page


def test_names_from_outside_are_escaped(run: Path) -> None:
    name = '<b>"it\'s" & <script>alert(1)</script> \udcff é'
    for stage in ("seg", "det", "cls"):
        record = json.loads((run / f"{stage}.json").read_text())
        for task, classes in record["classes"].items():
            record["classes"][task] = {name: next(iter(classes.values()))}
        for picture in record["pictures"]:
            picture["file"] = name
            for content in (picture["annotated"], picture["predicted"]):
                content["label"] = name
                content["regions"] = [{"name": name, "share": 0.5, "colour": "#112233"}]
                content["boxes"] = [{"name": name, "xywh": [1, 1, 9, 9], "colour": "#112233", "score": 0.5}]
        (run / f"{stage}.json").write_text(json.dumps(record))
    page = written(run)
    outline = Outline(page)
    assert outline.counts["script"] == 1
    assert "b" not in outline.counts
    assert "alert(1)&lt;/script&gt;" in page
    assert [row[0][:20] for row in outline.tables["seg-classes"][1:]] == [name[:20]]


def test_a_stage_without_a_record_is_shown_as_not_recorded(run: Path) -> None:
    (run / "det.json").unlink()
    rows = Outline(written(run)).tables["pictures"][1:]
    assert all(row[2] == "not recorded" for row in rows)
    assert all(row[3].startswith("label: ") for row in rows)
    for stage in ("seg", "cls"):
        (run / f"{stage}.json").unlink()
    assert Outline(written(run)).headings == SECTIONS


def test_a_chain_that_is_not_done_has_a_page_too(run: Path) -> None:
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:2]))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "tasks": {"seg": summary["tasks"]["seg"]}}))
    page = written(run)
    assert len(Outline(page).tables["drops"]) == 3
    assert "engine.train --stage seg --name tiny" in page


def test_the_page_of_a_run_is_always_the_same(run: Path) -> None:
    assert written(run) == written(run)


def test_commands_train_the_same_again() -> None:
    changed = {"order": (["seg", "det", "cls"], ["det", "seg"]), "init": ("stage0", None), "name": ("onehead", "a b")}
    settings = "--order '[\"det\", \"seg\"]' --init null --name 'a b'"
    order = ["det", "seg"]
    assert commands(changed, order, order, 0) == [f"python -m engine.train --stage all {settings}"]
    assert commands(changed, ["det"], order, 0) == [f"python -m engine.train --stage det {settings}"]
    assert commands(changed, ["joint"], order, 8) == [f"python -m engine.train --overfit 8 {settings}"]


def test_settings_that_differ_are_named_with_their_default() -> None:
    settings = to_dict(Config(seed=3))
    assert changed_settings(settings) == {"seed": (0, 3)}
    settings["optim"]["epochs"]["seg"] = 7
    assert changed_settings(settings) == {"seed": (0, 3), "optim.epochs.seg": (24, 7)}


def test_curves_of_loss_terms_by_hand() -> None:
    losses = [("seg", {"ce": 2.0}), ("seg", {"ce": 1.0}), ("det", {"ce": 4.0, "l1": 0.0}), ("det", {"ce": -1.0})]
    terms = loss_terms([{"stage": stage, "losses": values} for stage, values in losses])
    assert terms["ce"]["seg"] == {"first": 2.0, "last": 1.0, "points": "0.0,12.0 100.0,17.5"}
    assert terms["ce"]["det"]["points"] == "0.0,1.0 100.0,23.0"  # what is below 0 lies on the floor
    assert terms["l1"]["det"]["points"] == "0.0,23.0 100.0,23.0"  # a single value is a line
