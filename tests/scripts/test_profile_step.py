"""A step's time is told apart by part, and adds up."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from data.types import TASKS
from engine.storage.errors import UserError
from scripts.fill_tables import fill
from scripts.profile_step import MARK, NAMES, OTHER, WAITING, Span, main, marked, parts, timeline
from scripts.report.speed import MEASURED
from tests.engine.conftest import TINY, drawn  # noqa: F401


def test_nested_spans_share_out_the_time_to_the_innermost() -> None:
    step, losses, matching = Span(0, 10, "other"), Span(2, 8, "losses"), Span(3, 5, "matching")
    forward = Span(12, 13, "forward")
    assert timeline([matching, step, forward, losses, Span(4, 4, "empty")]) == [
        Span(0, 2, "other"),
        Span(2, 3, "losses"),
        Span(3, 5, "matching"),
        Span(5, 8, "losses"),
        Span(8, 10, "other"),
        Span(12, 13, "forward"),
    ]


def event(name: str, start: float, end: float, *kernels: float, device: Any = DeviceType.CPU) -> SimpleNamespace:
    """What the profiler tells of a call, with the durations of the kernels it launched; microseconds."""
    time_range = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    launched = [SimpleNamespace(duration=duration) for duration in kernels]
    return SimpleNamespace(name=name, time_range=time_range, device_type=device, kernels=launched)


def test_kernels_and_waits_belong_to_the_part_that_the_main_thread_is_in() -> None:
    events = [
        event(f"{MARK}{OTHER}", 0, 20_000),
        event(f"{MARK}backward", 4_000, 10_000),
        event("aten::mm", 5_000, 6_000, 3_000.0, 1_000.0),
        event("cudaStreamSynchronize", 12_000, 15_000),
        event("aten::add", 30_000, 31_000, 500.0),
        event(f"{MARK}backward", 4_000, 12_000, device=DeviceType.CUDA),
    ]
    found = parts(events, steps=2)
    assert found["backward"] == {"cpu_ms": 3.0, "device_ms": 2.0, "launches": 1.0}
    assert found[WAITING]["cpu_ms"] == 1.5
    assert found[OTHER] == {"cpu_ms": (14 - 3) / 2, "device_ms": 0.25, "launches": 0.5}


def test_what_a_teacher_computes_is_all_its_own() -> None:
    seen: list[list[str]] = []
    inside: list[str] = []
    forward = marked(lambda: seen.append(list(inside)), "forward", inside)
    forward()
    marked(forward, "teachers", inside)()
    assert seen == [["forward"], ["teachers"]]
    assert inside == []


def test_every_stage_is_recorded_and_shown(
    drawn: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = [*TINY, "--data.root", str(drawn), "--optim.batch", "3", "--continual.distill", "1", "--steps", "2"]
    assert main([*run, "--json", str(tmp_path / "profile-cpu.json")]) == 0
    record = json.loads((tmp_path / "profile-cpu.json").read_text())
    assert list(record["stages"]) == list(TASKS)
    for name, stage in record["stages"].items():
        assert set(stage["parts"]) == {*NAMES, WAITING, OTHER}
        assert all(set(row) == set(MEASURED) for row in stage["parts"].values())
        taken = {part: row["cpu_ms"] for part, row in stage["parts"].items()}
        assert min(taken["forward"], taken["losses"], taken["backward"], taken["optimiser"]) > 0
        assert (taken["matching"] > 0) == (name != "seg")  # replayed images have boxes too
        assert (taken["teachers"] > 0) == (name != "seg")
        assert stage["step_ms"] > 0
    filled = fill("<!-- table profile-cpu -->\n<!-- end -->\n", tmp_path)
    assert filled.splitlines()[1:-1] == [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert "| 64 px, 3 images, float32: ms a step | seg | det | cls |" in filled


def test_a_pass_without_a_step_that_counts_is_refused(drawn: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="a pass has 1 steps, and the first 2 do not count"):
        main([*TINY, "--data.root", str(drawn), "--optim.batch", "12"])


def test_the_table_of_a_gpu_shows_kernels_and_launches(tmp_path: Path) -> None:
    row = {"cpu_ms": 2.0, "device_ms": 1.0, "launches": 30.0}
    stage = {"step_ms": 5.0, "parts": {"forward": row, "backward": row}}
    record = {"size": 320, "batch": 16, "dtype": "torch.bfloat16", "device": "cuda", "machine": "a GPU", "threads": 2}
    record |= {"commit": "abc", "stages": {"seg": stage, "det": stage}}
    (tmp_path / "profile-gpu.json").write_text(json.dumps(record))
    filled = fill("<!-- table profile-gpu -->\n<!-- end -->\n", tmp_path)
    assert "| 320 px, 16 images, bfloat16: CPU ms, GPU ms, launches a step | seg | det |" in filled
    assert "| forward | 2.0, 1.0, 30 | 2.0, 1.0, 30 |" in filled
    assert "| all, under the profiler | 4.0, 2.0, 60 | 4.0, 2.0, 60 |" in filled
    assert "| a step without it | 5.0 | 5.0 |" in filled
