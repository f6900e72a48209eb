"""The benchmark counts, times and checks its own figures."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from data.types import TASKS
from engine import benchmark
from engine.benchmark import flops, limit, main, make_model, parameters, ratios, report
from engine.speed import timing
from engine.speed.reference_models import build
from engine.speed.timing import draw_targets, measure, summary, take_turns, training_step
from engine.storage.checkpoint import model_content, save
from engine.storage.errors import run_cli
from models.onehead import ModelConfig, OneHead
from models.targets import NO_CLASS, VOID

CLASSES = {"det": ("cat", "dog"), "seg": ("background", "cat", "dog"), "cls": ("church", "golf ball")}
CPU = torch.device("cpu")
SHORT = ["--size", "64", "--batch", "2", "--runs", "2", "--warmup", "1"]


@pytest.fixture
def model() -> OneHead:
    torch.manual_seed(0)
    return OneHead(ModelConfig(dim=32, heads=2, hidden=64, queries=10), CLASSES, input_size=64).eval()


@pytest.fixture
def weights(model: OneHead, tmp_path: Path) -> str:
    save(tmp_path / "tiny.pt", model_content(model))
    return str(tmp_path / "tiny.pt")


def test_the_parts_add_up_and_the_default_model_keeps_the_limit() -> None:
    default = make_model(None, 512, CPU)
    found = parameters(default)
    assert found["parameters"] == sum(p.numel() for p in default.parameters())
    assert found["parameters"] == sum(found[f"parameters_{part}"] for part in ("backbone", "neck", "head"))
    assert found["parameters"] < benchmark.MAX_PARAMETERS
    assert [len(default.classes[task]) for task in ("det", "seg", "cls")] == [10, 21, 10]


def test_given_weights_are_the_ones_measured_at_any_size(model: OneHead, weights: str) -> None:
    loaded = make_model(weights, 96, CPU)
    assert loaded.input_size == 96
    assert loaded.classes == model.classes
    assert torch.equal(loaded.head.projection.weight, model.head.projection.weight)
    assert not loaded.training


def test_another_backbone_is_measured_without_weights() -> None:
    assert make_model(None, 512, CPU, "yolov8n").config == ModelConfig("yolov8n")


def test_flops_are_two_per_multiply_add() -> None:
    class Known(nn.Module):
        """1 x 1 convolution of 3 to 5 channels, and nothing else that is counted."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu()

    assert flops(Known(), 8, CPU) == 2 * 3 * 5 * 8 * 8  # type: ignore[arg-type]


def test_flops_grow_with_the_image(model: OneHead) -> None:
    assert 3 < flops(model, 128, CPU) / flops(model, 64, CPU) < 8


def test_warm_up_runs_are_not_timed() -> None:
    calls: list[int] = []
    times = measure("test", lambda: calls.append(1), CPU, warmup=3, runs=4)
    assert len(calls) == 7
    assert len(times) == 4
    assert all(t >= 0 for t in times)


def test_times_are_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 1.002, 2.0, 2.003])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(timing, "tqdm", lambda runs, **options: runs)
    assert measure("test", lambda: None, CPU, warmup=0, runs=2) == pytest.approx([2.0, 3.0])


def test_what_is_compared_takes_turns_and_every_second_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(timing, "clock", lambda run, device: (run(), float(len(calls)))[1])
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, warmup=1, rounds=2)
    assert "".join(calls) == "aabb" * 3
    assert times == {"a": [6.0, 10.0], "b": [8.0, 12.0]}


def test_a_ratio_is_the_median_over_rounds() -> None:
    times = {"lraspp": [60.0, 120, 70], "ssdlite": [30.0, 60, 20], "mobilenet": [10.0, 20, 10]}
    steps = {f"train_{name}_ms_per_image_median": t for name, t in zip(("seg", "det", "cls", "lraspp"), (1, 3, 2, 4))}
    found = ratios({**times, "latency": [40.0, 100, 30], "exported": [20.0, 20, 50]}, steps)
    assert found == {"latency_ratio": 0.4, "exported_ratio": 0.2, "train_ratio": 0.75}
    deployed = {f"{name}_deployed": [2 * t for t in taken] for name, taken in times.items()}
    found = ratios({**times, **deployed, "latency": [9.0] * 3, "openvino_deployed": [50.0] * 3}, steps)
    assert found == {"latency_ratio": 0.09, "openvino_deployed_ratio": 0.25, "train_ratio": 0.75}


def test_median_and_95th_percentile() -> None:
    assert summary("x", list(range(101))) == {"x_median": 50.0, "x_p95": 95.0}


@pytest.mark.parametrize("stage", ["seg", "det", "cls"])
def test_drawn_targets_are_of_their_stage_alone(model: OneHead, stage: str) -> None:
    drawn = draw_targets(model, stage, 64, 6, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert len(drawn) == 6
    assert bool(drawn.has_boxes.all()) == bool(drawn.has_boxes.any()) == (stage == "det")
    assert bool((drawn.masks == VOID).all()) == (stage != "seg")
    assert bool((drawn.classes == NO_CLASS).all()) == (stage != "cls")
    if stage == "det":
        boxes = torch.cat(drawn.boxes)
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        assert float(low.min()) >= -1e-6
        assert float(high.max()) <= 1 + 1e-6
        assert all(1 <= len(b) == len(y) <= 13 for b, y in zip(drawn.boxes, drawn.labels))
        assert set(torch.cat(drawn.labels).tolist()) == {0, 1}
    else:
        assert int(drawn.masks.max()) in (2, VOID)
        assert sum(map(len, drawn.boxes)) == 0


@pytest.mark.parametrize(("stage", "live"), [("seg", "seg_ce"), ("det", "giou_extra"), ("cls", "cls_ce")])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_training_step_goes_all_the_way_and_leaves_the_weights(
    model: OneHead, monkeypatch: pytest.MonkeyPatch, stage: str, live: str, dtype: torch.dtype | None
) -> None:
    norms: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def watch(found: object, most: float) -> torch.Tensor:
        norm = clip(found, most)  # type: ignore[arg-type]
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watch)
    before = model.head.projection.weight.detach().clone()
    step = training_step(model, stage, 64, dtype, 2)  # type: ignore[arg-type]
    losses = step()
    while dtype == torch.float16 and not math.isfinite(norms[-1]) and len(norms) < 20:
        step()  # the loss scaler starts too high, on purpose
    assert float(losses[live]) > 0
    assert 0 < norms[-1] < math.inf
    assert torch.allclose(model.head.projection.weight, before, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_every_stage_moves_batch_norm_statistics_as_in_the_default_recipe(model: OneHead) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for stage in TASKS:
        training_step(model, stage, 64, None, 2)
        assert all(m.training for m in norms)


def test_the_command_prints_a_table_and_one_flat_json_line(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--alone"]
    assert run_cli(main, ["--weights", weights, *SHORT, *arguments]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert not any(isinstance(v, (dict, list)) for v in figures.values())
    assert {figures[k] for k in ("device", "precision")} == {"cpu", "fp32"}
    assert (figures["size"], figures["batch"], figures["threads"]) == (64, 2, 1)
    assert figures["torch"] == torch.__version__
    assert figures["latency_ms_median"] <= figures["latency_ms_p95"]
    for stage in ("seg", "det", "cls"):
        assert 0 < figures[f"train_{stage}_ms_per_image_median"] <= figures[f"train_{stage}_ms_per_image_p95"]
    assert 50 < figures["inference_peak_mib"] <= figures["training_peak_mib"]
    assert figures["parameters_passed"] is True
    for text in (
        "parameters, M",
        "backbone",
        "forward pass, GFLOPs",
        "one image",
        "training det",
        figures["device_name"],
    ):
        assert text in out
    assert "pass: limit below 8 M" in out
    assert "for information: within the 150 ms that a T4 may take" in out


def test_beside_it_stands_what_a_user_would_pick_instead(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, ["--weights", weights, *SHORT, "--device", "cpu", "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert all(figures[f"{name}_ms_median"] > 0 for name in ("lraspp", "ssdlite", "mobilenet"))
    assert figures["latency_ratio"] > 0
    assert figures["exported_ratio"] > 0
    slowest = max(figures[f"train_{stage}_ms_per_image_median"] for stage in ("seg", "det", "cls"))
    assert figures["train_ratio"] == pytest.approx(slowest / figures["train_lraspp_ms_per_image_median"], abs=1e-3)
    assert figures["deployed_size"] == 64
    for name in ("latency", "exported"):
        assert figures[f"{name}_deployed_ratio"] > 0
        assert figures[f"{name}_deployed_ms_median"] > 0
    assert ("openvino_ratio" in figures) == (find_spec("openvino") is not None)
    assert "SSDLite320 " in out
    assert "as deployed: at 64 px, they at 520, 320, 224" in out
    assert f"this network takes {figures['latency_ratio']:.2f}" in out


@torch.no_grad()
def test_the_detector_to_compare_with_is_spared_its_post_processing() -> None:
    found = build("ssdlite").eval()([torch.rand(3, 64, 64)])
    assert len(found[0]["boxes"]) == 0


FIGURES = {"device": "cuda", "parameters_passed": True, "latency_passed": True}


@pytest.mark.parametrize(
    ("change", "name", "text"),
    [
        ({}, "parameters", "pass: limit below 8 M"),
        ({"parameters_passed": False}, "parameters", "FAIL: limit below 8 M"),
        ({}, "latency", "pass: limit 150 ms on a T4"),
        ({"latency_passed": False}, "latency", "FAIL: limit 150 ms on a T4"),
        ({"device": "cpu", "latency_passed": False}, "latency", "for information: above the 150 ms that a T4 may take"),
    ],
)
def test_verdicts(change: dict[str, object], name: str, text: str) -> None:
    assert limit({**FIGURES, **change}, name) == text


def test_the_limits_are_those_of_the_assignment(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "take_turns", lambda *a: {"latency": [150.0]})
    monkeypatch.setattr(benchmark, "time_training", lambda *a: {})
    monkeypatch.setattr(benchmark, "report", lambda figures: "")
    monkeypatch.setattr(benchmark, "parameters", lambda model: {"parameters": 8_000_000})
    main(["--weights", weights, "--size", "64", "--device", "cpu", "--alone"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["latency_passed"], figures["parameters_passed"]) == (True, False)


def test_the_table_on_a_gpu_names_its_memory() -> None:
    figures = dict.fromkeys(("inference_peak_mib", "training_peak_mib", "gflops", "latency_ms_median"), 1.0)
    figures |= {f"train_{s}_ms_per_image_{q}": 1.0 for s in ("seg", "det", "cls") for q in ("median", "p95")}
    figures |= dict.fromkeys((f"parameters{p}" for p in ("", "_backbone", "_neck", "_head")), 2e6)
    words = {"device_name": "Tesla T4", "threads": 2, "precision": "fp16", "torch": "2", "size": 512, "batch": 8}
    text = report({**figures, **words, **FIGURES, "latency_ms_p95": 2.0})
    assert "Tesla T4, 2 CPU threads, fp16, torch 2, 512 x 512 pixels" in text
    assert "allocated on the GPU" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "300"], "--size 300: it must be a multiple of 32"),
        (["--size", "32"], f"--size 32: model.queries {ModelConfig().queries} is more than the 21 locations"),
        (["--weights", "no.pt", "--backbone", "yolov8n"], "--backbone and --weights: the file brings its own"),
        (["--weights", "no.pt"], "no.pt is not there"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, ["--device", "cpu", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {text}")
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, ["--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: torch sees no CUDA device; use --device auto or cpu\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_command_on_a_gpu(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, ["--weights", weights, *SHORT, "--device", "cuda"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["device"] == "cuda"
    assert figures["training_peak_mib"] > 0


def test_help_is_grouped_and_shows_defaults_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("what to measure:", "where:", "how often:", "(default: 512)", "(default: 8)", "(default: 20)"):
        assert part in text
    assert "python -m engine.benchmark --threads 2" in text
    assert "decoding and resizing of the file are not in it" in text
