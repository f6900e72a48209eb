"""Stage 0 learns from a teacher, resumes bit for bit, stops in time, and hands on backbone and readout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from engine import pretrain
from engine.pretrain import Pretraining
from engine.settings.config import Config, PretrainConfig
from engine.storage.checkpoint import EIGHT_BITS, backbone_weights, load, load_pretrained, read_shape, save, stage0_path
from engine.storage.errors import UserError
from engine.train import main
from engine.training.start import start_of
from engine.training.teacher_runtime import teacher_side
from models.onehead import ModelConfig
from models.public_teacher import PublicTeacher
from scripts.publish_weights import main as publish
from tests.conftest import TEACHER


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photographs without labels, of many colours and sizes."""
    root = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        cells = torch.randint(256, (4, 4, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(cells.numpy()).resize((40 + i % 9, 36)).save(root / f"{i:02}.png")
    return root


def run(photos: Path, teacher: Path, runs: Path, *more: str) -> int:
    own = f"--stage pretrain --name p --pretrain.teacher {TEACHER} --pretrain.batch 8 --pretrain.views 160"
    where = ["--runs", str(runs), "--pretrain.sources", f"[{photos}]", "--pretrain.teacher_weights", str(teacher)]
    sizes = ["--data.size", "64", "--pretrain.sizes", "[32, 64]", "--precision", "fp32"]
    return main([*own.split(), *where, *sizes, "--pretrain.ema", "0.9", "--track.save_seconds", "0", *more])


@pytest.fixture(scope="module")
def finished(photos: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a stage 0 that ran through."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(photos, teacher, runs) == 0
    return runs / "p"


def test_a_run_leaves_a_backbone_figures_and_curves(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["views"] for r in rows] == list(range(8, 161, 8))
    assert [r["side"] for r in rows] == 10 * [32] + 10 * [64]
    assert set(rows[0]["losses"]) == {"map8", "map16", "map32", "map8_semantic", "pooled", "logits"}
    assert rows[9]["loss"] < rows[0]["loss"]
    assert {p.name for p in finished.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "pretrain.pt",
        "pretrain.png",
        ".lock",
    }
    content = load(finished / "pretrain.pt")
    assert all(key.startswith("backbone.") for key in content["model"])
    assert content["readout"]["weight"].shape == (1000, 320)
    assert TEACHER in content["teacher"]


def test_the_last_steps_have_a_row_too(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "ROWS", 2)
    assert run(photos, teacher, tmp_path, "--pretrain.views", "40") == 0  # 5 steps, a row each 2
    rows = [json.loads(line) for line in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["views"]) for r in rows] == [(1, 16), (2, 32), (3, 40)]
    assert rows[2]["loss"] == pytest.approx(rows[1]["loss"], rel=0.5)  # a mean, not a sum


def test_muon_learns_what_mixes_channels(photos: Path, teacher: Path, finished: Path, tmp_path: Path) -> None:
    settings = PretrainConfig([str(photos)], teacher=TEACHER, teacher_weights=str(teacher))
    training = Pretraining(Config(pretrain=settings), tmp_path, None)
    training.learn(training.views(0, 32), training.teacher(training.views(0, 32)))
    optimizer = training.optimizer.optimizer
    assert {group["fallback_lr_scale"] for group in optimizer.param_groups} == {0.2}
    by_muon = {p: "momentum_buffer" in state for p, state in optimizer.state.items()}
    assert by_muon == {p: p.ndim > 1 and p.shape[1] > 1 for p in by_muon}


def test_a_run_of_another_optimiser_cannot_be_resumed(photos: Path, teacher: Path, tmp_path: Path) -> None:
    assert run(photos, teacher, tmp_path, "--pretrain.minutes", "0") == 0
    last = load(tmp_path / "p" / "last.pt")
    network = torch.nn.Linear(2, 2)
    last["optimizer"] = torch.optim.AdamW([{"params": [network.weight]}, {"params": [network.bias]}]).state_dict()
    save(tmp_path / "p" / "last.pt", last)
    with pytest.raises(UserError, match=r"last\.pt holds another optimiser"):
        run(photos, teacher, tmp_path, "--resume")


def test_a_later_run_takes_up_the_readouts_of_the_same_teacher(
    photos: Path, teacher: Path, finished: Path, tmp_path: Path
) -> None:
    content = load(finished / "pretrain.pt")
    save(tmp_path / "bare.pt", {k: v for k, v in content.items() if k not in ("readout", "readouts")})
    losses = {}
    for name, init in (("with", finished / "pretrain.pt"), ("without", tmp_path / "bare.pt")):
        run(photos, teacher, tmp_path / name, "--pretrain.init", str(init), "--pretrain.views", "8")
        losses[name] = json.loads((tmp_path / name / "p" / "metrics.jsonl").read_text())["losses"]
    assert all(losses["with"][term] < losses["without"][term] for term in ("map8", "map16", "map32", "pooled"))


def test_its_norms_are_those_of_the_size_of_use(finished: Path, photos: Path, teacher: Path, tmp_path: Path) -> None:
    assert run(photos, teacher, tmp_path, "--data.size", "128") == 0
    one, other = (load(folder / "pretrain.pt")["model"] for folder in (finished, tmp_path / "p"))
    weights = [k for k in one if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(one[k], other[k]) for k in weights)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_an_interrupted_run_ends_bit_for_bit_the_same(
    photos: Path, teacher: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Pretraining.learn
    calls = []

    def stop_at_times(self: Pretraining, *arguments: object) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) in (5, 14):
            raise KeyboardInterrupt
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Pretraining, "learn", stop_at_times)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(photos, teacher, tmp_path, "--resume")
    with pytest.raises(UserError, match="add --resume"):
        run(photos, teacher, tmp_path)
    assert run(photos, teacher, tmp_path, "--resume") == 0
    first, second = load(finished / "pretrain.pt")["model"], load(tmp_path / "p" / "pretrain.pt")["model"]
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_it_stops_when_its_minutes_are_over_and_goes_on_later(
    photos: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, teacher, tmp_path, "--pretrain.minutes", "0") == 0
    assert "1 of 20 steps after 0.0 minutes; --resume goes on" in capsys.readouterr().out
    assert (tmp_path / "p" / "last.pt").is_file()
    with pytest.raises(UserError, match=r"last\.pt has model\.backbone fast_scnn, not yolov8n: resume with it"):
        run(photos, teacher, tmp_path, "--resume", "--model.backbone", "yolov8n")
    assert run(photos, teacher, tmp_path, "--resume") == 0
    assert (tmp_path / "p" / "pretrain.pt").is_file()


def test_a_second_round_goes_on_from_the_first(photos: Path, teacher: Path, finished: Path, tmp_path: Path) -> None:
    assert run(photos, teacher, tmp_path, "--pretrain.init", str(finished / "pretrain.pt"), "--pretrain.lr", "0") == 0
    first, second = load(finished / "pretrain.pt")["model"], load(tmp_path / "p" / "pretrain.pt")["model"]
    assert all(torch.equal(first[k], second[k]) for k in first if k.endswith("weight"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pretrain.sizes", "[64, 50]"], "pretrain.sizes names 50: it must be a multiple of 32"),
        (["--pretrain.sizes", "[]"], "pretrain.sizes is empty"),
        (["--pretrain.teacher", "no_such_net"], "timm knows no network 'no_such_net'"),
        (["--pretrain.teacher", "resnet18"], "holds another network than resnet18"),
        (["--pretrain.batch", "0"], "pretrain.batch is 0: it must be at least 1"),
        (["--model.backbone", "resnet"], "unknown backbone 'resnet': choose one of efficientnet_b0"),
    ],
)
def test_what_cannot_work_is_refused(
    options: list[str], sentence: str, photos: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(photos, teacher, tmp_path, *options)


def test_a_teacher_looks_at_larger_views_up_to_a_limit() -> None:
    assert [teacher_side(side) for side in (64, 128, 160, 192, 224, 256, 320)] == [96, 192, 224, 256, 256, 256, 320]


def test_openvino_gives_the_outputs_of_torch() -> None:
    pytest.importorskip("openvino")
    from engine.training.teacher_runtime import OpenVINOTeacher

    teacher = PublicTeacher(TEACHER)
    views = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, expected = (
        OpenVINOTeacher(teacher)(views, 96),
        teacher(torch.nn.functional.interpolate(views, (96, 96), mode="bilinear")),
    )
    for one, other in zip(found, expected):  # OpenVINO takes bfloat16 where the processor has it
        assert one.shape == other.shape
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_stages_start_from_its_backbone_and_recall_how_it_names(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished / "pretrain.pt"
    assert main([*tiny, "--stage", "seg", "--init", str(weights), "--continual.recall", "1"]) == 0
    out = capsys.readouterr().out
    assert f"starts from {weights}; neck and head: random weights" in out
    assert "recall does nothing" not in out
    metrics = Path(tiny[tiny.index("--runs") + 1]) / "tiny" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert all("recall" in row["losses"] for row in rows)


def test_the_pretrained_backbone_is_the_one_that_was_saved(finished: Path) -> None:
    pretrained = load_pretrained(finished / "pretrain.pt", "fast_scnn")
    content = load(finished / "pretrain.pt")
    assert all(torch.equal(v, content["model"][f"backbone.{k}"]) for k, v in pretrained.backbone.state_dict().items())
    assert pretrained.readout is not None
    assert torch.equal(pretrained.readout.linear.weight, content["readout"]["weight"])
    with pytest.raises(UserError, match="has the backbone fast_scnn, not yolov8n"):
        backbone_weights(finished / "pretrain.pt", "yolov8n")


def test_the_weights_of_this_repository_fit_the_default_backbone() -> None:
    path = stage0_path("fast_scnn")
    assert path is not None
    assert path.stat().st_size < 4 << 20
    content = load(path)
    assert content["format"] == EIGHT_BITS
    assert start_of(Config()) == ("whole", str(path))
    assert start_of(Config(model=ModelConfig(dim=64))) == ("backbone", str(path))
    assert read_shape(content) == Config().model
    pretrained = load_pretrained(path, Config().model.backbone)
    with torch.inference_mode():
        maps = pretrained.maps(torch.rand(1, 3, 64, 64))
        names = pretrained.name(maps, torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]))
    assert torch.isfinite(names).all()
    assert names.shape == (1, 1, 1000)
    assert stage0_path("no_such_backbone") is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["--init", "null"], "starts from random"), (["--init", "stage0"], "neck and head: random")],
)
def test_the_default_start_is_stage_0(
    options: list[str], sentence: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--stage", "seg", *options]) == 0
    assert sentence in capsys.readouterr().out


def test_a_published_stage_0_is_half_as_large_and_names_no_folder_of_the_machine(
    finished: Path, tmp_path: Path
) -> None:
    assert publish([str(finished / "pretrain.pt"), str(tmp_path / "small.pt")]) == 0
    content = load(tmp_path / "small.pt")
    assert all(v.dtype in (torch.float16, torch.int64) for v in content["model"].values())
    assert not {"data", "pretrain", "runs", "rows"} & {*content, *content["config"]}
    assert "/" not in content["teacher"]
    whole, small = (load_pretrained(p, "fast_scnn") for p in (finished / "pretrain.pt", tmp_path / "small.pt"))
    for one, other in zip(whole.state_dict().values(), small.state_dict().values()):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_network_published_with_readouts_lets_stage_0_go_on(
    photos: Path, teacher: Path, finished: Path, tiny: list[str], tmp_path: Path
) -> None:
    assert main([*tiny, "--stage", "det", "--order", "[det]", "--optim.epochs.det", "1"]) == 0
    network, stage0 = str(tmp_path / "runs" / "tiny" / "det.pt"), str(finished / "pretrain.pt")
    assert publish([network, str(tmp_path / "both.pt"), "--stage0", stage0]) == 0
    both, before = load(tmp_path / "both.pt"), load(finished / "pretrain.pt")
    assert both["format"] == EIGHT_BITS
    assert both["training_images"] == load(network)["training_images"]
    for group in ("readout", "readouts"):
        for name, weight in before[group].items():
            step = float(weight.abs().max()) / 127
            torch.testing.assert_close(both[group][name], weight, atol=0.51 * step, rtol=0, check_dtype=False)
    save(tmp_path / "bare.pt", {k: v for k, v in both.items() if k not in ("readout", "readouts")})
    losses = {}
    for name in ("both", "bare"):
        start = str(tmp_path / f"{name}.pt")
        run(photos, teacher, tmp_path / name, "--pretrain.views", "8", "--pretrain.init", start)
        losses[name] = json.loads((tmp_path / name / "p" / "metrics.jsonl").read_text())["losses"]
    assert all(losses["both"][term] < losses["bare"][term] for term in ("map8", "map16", "map32", "pooled"))
    assert publish([str(tmp_path / "both.pt"), str(tmp_path / "again.pt")]) == 0
    assert torch.equal(load(tmp_path / "again.pt")["readout"]["weight"], both["readout"]["weight"])


def test_readouts_come_from_a_finished_stage_0(tiny: list[str], finished: Path, tmp_path: Path) -> None:
    assert main([*tiny, "--stage", "seg", "--optim.epochs.seg", "1"]) == 0
    network, stage0 = str(tmp_path / "runs" / "tiny" / "seg.pt"), str(finished / "pretrain.pt")
    target = str(tmp_path / "both.pt")
    with pytest.raises(UserError, match=r"seg.pt holds no readouts: give a checkpoint that --stage pretrain ended"):
        publish([network, target, "--stage0", network])
    with pytest.raises(UserError, match=r"pretrain.pt is of stage 0 and has readouts of its own: leave --stage0 out"):
        publish([stage0, target, "--stage0", stage0])
    save(tmp_path / "last.pt", {"stage": "pretrain", "config": {}})
    with pytest.raises(UserError, match=r"last.pt is of an unfinished stage 0: finish it with --resume"):
        publish([str(tmp_path / "last.pt"), target])
