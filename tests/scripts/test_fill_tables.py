from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from engine.storage.errors import UserError
from scripts.fill_tables import fill, filled, main
from scripts.report import headlines, tables


def result(stage: str, variant: str, seed: int, **scores: float) -> dict[str, object]:
    return {
        "variant": variant,
        "stage": stage,
        "seed": seed,
        "settings": {"data.holdout": True, "optim.lr": 0.1},
        "minutes": 2.0 + seed,
        "peak_memory_mib": 100.0 + seed,
        "rows": [{metric.replace("_", "-"): value for metric, value in scores.items()}],
    }


def write(folder: Path, *results: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    for i, content in enumerate(results):
        (folder / f"{i}.json").write_text(json.dumps(content))


def test_tables_hold_mean_and_range_over_seeds(tmp_path: Path) -> None:
    write(tmp_path / "search-cls", result("cls", "slow", 0, Top_1=0.5), result("cls", "slow", 1, Top_1=0.7))
    page = "Before.\n\n<!-- table search-cls -->\nold\n<!-- end -->\n\nAfter.\n"
    filled = fill(page, tmp_path)
    assert "| slow | `optim.lr 0.1` | 2 | 0.600 (0.500-0.700) | 2.5 | 101 |" in filled
    assert "old" not in filled
    assert filled.startswith("Before.\n\n<!-- table search-cls -->\n| variant |")
    assert filled.endswith("|\n<!-- end -->\n\nAfter.\n")
    assert fill(filled, tmp_path) == filled


def test_classes_show_how_many_there_are_and_how_well_they_do(tmp_path: Path) -> None:
    per_class = {
        "det": {"cat": {"AP": 0.25, "AP50": 0.5, "boxes": 12.0}, "bus": {"AP": None, "AP50": None, "boxes": 0.0}},
        "seg": {"sheep": {"IoU": 0.4, "accuracy": 0.6, "pixels": 0.0125}},
        "cls": {"tench": {"accuracy": 0.75, "images": 4.0}},
    }
    (tmp_path / "classes.json").write_text(json.dumps({"mAP": 0.25, "per_class": per_class}))
    filled = fill("<!-- table classes -->\n<!-- end -->\n", tmp_path)
    assert "| cat | 12 | 0.250 | 0.500 |" in filled
    assert "| bus | 0 | - | - |" in filled
    assert "| sheep | 1.2 % | 0.400 | 0.600 |" in filled
    assert "| tench | 4 | 0.750 |" in filled


def test_backbones_show_what_their_chains_end_with(tmp_path: Path) -> None:
    size = {"parameters": 2_120_000, "gflops": 2.38, "latency_ms_median": 60.4}
    write(tmp_path / "backbones", {"backbone": "fast_scnn", **size}, {"backbone": "yolov8n", **size})
    (tmp_path / "final").mkdir()
    for name, miou in (("onehead-all-s0", 0.4), ("onehead-all-s1", 0.5), ("finetune-all-s0", 0.1)):
        content = result("all", "any", 0, mIoU=miou, mAP=0.07, AP50=0.2, Top_1=0.9)
        (tmp_path / "final" / f"{name}.json").write_text(json.dumps(content))
    filled = fill("<!-- table backbones -->\n<!-- end -->\n", tmp_path)
    begin = "| `fast_scnn` | 2.12 M | 2.4 | 60 ms | stage 0, 9 M views, pseudo-boxes | 2 | "
    assert f"{begin}0.450 (0.400-0.500) | 0.070 (" in filled
    assert "| `yolov8n` | 2.12 M | 2.4 | 60 ms | - | - | - | - | - | - |" in filled


def test_starts_are_compared_on_all_tasks(tmp_path: Path) -> None:
    write(
        tmp_path / "stage0_worth",
        result("seg", "whole", 0, mIoU=0.2),
        result("det", "whole", 0, AP50=0.1, mAP=0.05),
        result("cls", "whole", 0, Top_1=0.8),
        result("seg", "random", 0, mIoU=0.05),
    )
    filled = fill("<!-- table stage0_worth -->\n<!-- end -->\n", tmp_path)
    assert "| whole | 1 | 0.200 | 0.100 | 0.050 | 0.800 | 2.0, 2.0, 2.0 |" in filled
    assert "| random | 1 | 0.050 | - | - | - | 2.0, -, - |" in filled


def test_tasks_alone_show_their_numbers_of_seeds_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ALONE", {"long/alone": "long"})
    cells = [result("det", "alone", seed, AP50=0.1 + seed / 10, mAP=0.05) for seed in (0, 1)]
    cells += [result("seg", "alone", 0, mIoU=0.2), result("cls", "alone", 0, Top_1=0.8)]
    write(tmp_path / "long", *({**cell, "machine": "a laptop"} for cell in cells))
    shown = tables.alone(tmp_path)
    assert (
        "| long | 1, 2, 1 | 0.200 | 0.150 (0.100-0.200) | 0.050 (0.050-0.050) | 0.800 | 2.0, 2.5, 2.0 | 101 |" in shown
    )
    cells = [cell for cell in cells if cell["seed"] == 0]
    write(tmp_path / "even" / "long", *({**cell, "machine": "a laptop"} for cell in cells))
    assert "| long | 1 | 0.200 | 0.100 |" in tables.alone(tmp_path / "even")


def test_chains_show_what_each_task_had_and_has(tmp_path: Path) -> None:
    rows = [
        {"stage": "seg", "mIoU": 0.2, "AP50": 0.0, "mAP": 0.0, "Top-1": 0.1},
        {"stage": "det", "mIoU": 0.15, "AP50": 0.1, "mAP": 0.05, "Top-1": 0.1},
        {"stage": "cls", "mIoU": 0.18, "AP50": 0.12, "mAP": 0.04, "Top-1": 0.8},
    ]
    write(tmp_path / "search-chain", {"rows": rows, "minutes": 20, "commit": "abc"})
    filled = fill("<!-- table search-chain -->\n<!-- end -->\n", tmp_path)
    assert "| 0 | 0.200, 0.180 | 0.100, 0.120 | 0.050, 0.040 | 0.800, 0.800 | 20.0 | abc |" in filled
    write(tmp_path / "search-teacher", {"rows": rows[:2], "minutes": 15, "commit": "abc"})
    filled = fill("<!-- table search-teacher -->\n<!-- end -->\n", tmp_path)
    assert "| 0 | 0.200, 0.150 | 0.100, 0.100 | 0.050, 0.050 | - | 15.0 | abc |" in filled


def test_the_headline_compares_the_end_with_each_task_alone_and_after_its_own_stage(tmp_path: Path) -> None:
    own = {"seg": {"mIoU": 0.2}, "det": {"AP50": 0.1, "mAP": 0.05}, "cls": {"Top-1": 0.8}}
    zero = {"mIoU": 0.0, "AP50": 0.0, "mAP": 0.0, "Top-1": 0.0}
    rows = [{**zero, **values, "stage": stage} for stage, values in own.items()]
    rows[-1] |= {"mIoU": 0.15, "AP50": 0.12, "mAP": 0.05}
    chain = {**result("all", tables.RECIPE, 3), "rows": rows}
    singles = [{**result(stage, "single-task", 3), "rows": [values]} for stage, values in own.items()]
    write(tmp_path / "final", chain, {**chain, "variant": "another", "rows": []}, *singles)
    filled = fill("<!-- table headline -->\n<!-- end -->\n", tmp_path)
    assert "| mIoU | 0.200 | 0.200 | 0.150 | -25.0 % (-25.0) | -25.0 % (-25.0) |" in filled
    assert "| AP50 | 0.100 | 0.100 | 0.120 | +20.0 % (+20.0) | +20.0 % (+20.0) |" in filled


def test_the_first_table_shows_recipes_beside_each_task_alone_where_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [result("all", "onehead", seed, mIoU=0.3 + seed / 10, mAP=0.1, AP50=0.2, Top_1=0.8) for seed in (0, 1)]
    write(tmp_path / "final", *ends, result("seg", "single-task", 0, mIoU=0.31), result("all", "finetune", 0, mIoU=0.0))
    monkeypatch.setattr(headlines, "FIRST", {("final", "onehead"): ("Lite0", "strict")})
    filled = fill("<!-- table first -->\n<!-- end -->\n", tmp_path)
    assert "| backbone | replay | seeds | mIoU | mAP | AP50 | Top-1 |" in filled
    assert "| Lite0 | strict | 2 | 0.350 (0.310) | 0.100 | 0.200 | 0.800 |" in filled


def test_text_cells_of_a_notebook_are_filled_and_nothing_else_changes(tmp_path: Path) -> None:
    ends = [{"stage": s, "mIoU": 0.5, "mAP": 0.25, "AP50": 0.375, "Top-1": 1.0} for s in ("seg", "seg", "det")]
    record = {"evaluations": ends, "minutes_by_stage": {"seg": 1.25, "det": 2.0}}
    (tmp_path / "quickstart.json").write_text(json.dumps(record))
    table = "<!-- table quickstart -->\n<!-- end -->"
    cells = [nbformat.v4.new_markdown_cell(f"Before.\n\n{table}"), nbformat.v4.new_code_cell(f'"""{table}"""')]
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    path.write_text(filled(path, tmp_path))
    text, program = nbformat.read(path, as_version=4).cells
    assert "| seg | 0.500 | 0.250 | 0.375 | 1.000 | 1.2 |\n| det |" in text.source
    assert program.source == cells[1].source
    assert filled(path, tmp_path) == path.read_text()


def test_the_ablation_shows_what_each_remedy_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ABLATION", {"ewc": "EWC", "finetune": "none"})
    after = {"mIoU": 0.1, "mAP": 0.02, "Top-1": 0.8, "AP50": 0.05}
    rows = [{**after, "mIoU": 0.3, "stage": "seg"}, {**after, "stage": "det"}, {**after, "stage": "cls"}]
    drops = {m: {"before": 0.2, "after": after[m], "points": 0.1, "relative": 0.25} for m in ("mIoU", "mAP", "Top-1")}
    cells = [{**result("all", name, 0), "rows": rows, "drops": drops} for name in ("finetune", "ewc")]
    untrained = {"mIoU": 0.0, "mAP": 0.0, "Top-1": 0.0}
    own = {"seg": {"mIoU": 0.2}, "det": {"mAP": 0.05}, "cls": {"Top-1": 0.9}}
    singles = [{**result(s, "single-task", 0), "rows": [{**untrained, **v}]} for s, v in own.items()]
    write(tmp_path / "compare", *cells, *singles)
    lines = fill("<!-- table ablation -->\n<!-- end -->\n", tmp_path).splitlines()
    assert lines[3] == "| single-task networks | 0.200 |  | 0.050 |  | 0.900 |  |  |"
    assert lines[4] == "| EWC | 0.100 | -25 % | 0.020 | -25 % | 0.800 | -25 % | -10.0 |"
    assert lines[5].startswith("| none | 0.100 | -25 % |")


def test_links_between_pages_lead_to_files_and_headings() -> None:
    root = Path(__file__).parents[2]
    pages = ["README.md", "report.md", "CONTRIBUTING.md", "weights/README.md", *sorted((root / "docs").glob("*.md"))]
    for page in (root / name for name in pages):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("http"):
                continue
            file, _, anchor = target.partition("#")
            other = (page.parent / file).resolve() if file else page
            assert other.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in anchors, f"{page.name}: {target}"


def test_a_table_without_records_or_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table 'mine'"):
        fill("<!-- table mine -->\n<!-- end -->", tmp_path)
    with pytest.raises(UserError, match="holds no results"):
        fill("<!-- table search-det -->\n<!-- end -->", tmp_path)


def test_the_pages_of_the_repository_are_those_of_its_records() -> None:
    assert main(["--check"]) == 0


def test_speed_is_shown_beside_the_reference_models(tmp_path: Path) -> None:
    record = {f"parameters_{part}": 1_000_000 for part in ("backbone", "neck", "head")}
    record |= {f"{name}_ms_median": 10.0 for name in ("lraspp", "ssdlite", "mobilenet")}
    record |= {
        f"{name}_ms_{kind}": value for name in ("latency", "exported") for kind, value in (("median", 12), ("p95", 15))
    }
    record |= {
        f"train_{stage}_ms_per_image_median": 40.0 + i for i, stage in enumerate(("seg", "det", "cls", "lraspp"))
    }
    record |= {"parameters": 3_000_000, "size": 512, "threads": 2, "gflops": 2.0, "latency_ratio": 0.4}
    record |= {"exported_ratio": 0.3, "inference_peak_mib": 5.0, "training_peak_mib": 7.0}
    (tmp_path / "benchmark.json").write_text(json.dumps({**record, "precision": "bf16", "commit": "abc"}))
    filled = fill("<!-- table benchmark -->\n<!-- end -->\n", tmp_path)
    assert "| what | 512 x 512, 2 threads, bf16 |" in filled
    assert "1.00 M, 1.00 M, 1.00 M, 3.00 M" in filled
    assert "| LR-ASPP + SSDLite320 + MobileNetV3-Small | 30.0 ms |" in filled
    assert "| 40, 41, 42; 43 ms |" in filled
    record |= {f"{name}_deployed_ms_median": 20.0 for name in ("lraspp", "ssdlite", "mobilenet")}
    for name in ("latency_deployed", "exported_deployed", "openvino_deployed", "openvino"):
        record |= {f"{name}_ms_median": 6.0, f"{name}_ms_p95": 7.0, f"{name}_ratio": 0.1}
    (tmp_path / "benchmark.json").write_text(
        json.dumps({**record, "precision": "bf16", "commit": "abc", "deployed_size": 256})
    )
    filled = fill("<!-- table benchmark -->\n<!-- end -->\n", tmp_path)
    assert "| exported to ONNX, OpenVINO: median (95 %), ratio | 6.0 (7.0) ms, 0.10 |" in filled
    assert "| deployed, at 256 px: median (95 %) | 6.0 (7.0) ms |" in filled
    assert "MobileNetV3-Small at 520, 320, 224 px | 60.0 ms |" in filled
    assert "| deployed and exported to ONNX, OpenVINO: median (95 %), ratio | 6.0 (7.0) ms, 0.10 |" in filled


def test_single_runs_show_the_end_and_each_task_after_its_own_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RUNS", {"a.json": "the chain", "b.json": "the test"})
    first = {"stage": "seg", "mIoU": 0.2, "mAP": 0.0, "AP50": 0.0, "Top-1": 0.1}
    rows = [
        first,
        {**first, "stage": "det", "mAP": 0.3, "AP50": 0.4},
        {**first, "stage": "cls", "mIoU": 0.1, "Top-1": 0.8},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows, "minutes": 3, "commit": "abc"}))
    (tmp_path / "b.json").write_text(json.dumps({**first, "minutes": 1, "commit": "def"}))
    filled = fill("<!-- table runs -->\n<!-- end -->\n", tmp_path)
    assert "| [the chain](results/a.json) | 0.100 | 0.000 | 0.000 | 0.800 | 3.0 | abc |" in filled
    assert "| - each task right after its own stage | 0.200 | 0.300 | 0.400 | 0.800 |  |  |" in filled
    assert "| [the test](results/b.json) | 0.200 | 0.000 | 0.000 | 0.100 | 1.0 | def |" in filled
