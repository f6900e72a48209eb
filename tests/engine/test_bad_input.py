"""What the command lines do with broken sets, wrong files and wrong orders: one sentence, code 2, nothing harmed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from engine import train as training
from engine.storage.errors import run_cli
from models.criterion import Criterion

TINY = [
    *("--data.size=64", "--model.dim=32", "--model.heads=2", "--model.hidden=64", "--model.queries=10"),
    *("--optim.batch=6", "--optim.epochs.seg=1", "--optim.epochs.det=1", "--optim.epochs.cls=1"),
    *("--track.evals=1", "--precision=fp32"),
]
Capture = pytest.CaptureFixture[str]
Spoil = Callable[[Path], object]


@pytest.fixture
def sets(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the drawn sets that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "sets"))


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished segmentation stage."""
    runs = tmp_path_factory.mktemp("finished")
    assert train(drawn, runs, "--stage", "seg") == 0
    return runs / "mine"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run folder."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "mine"))


def train(root: Path, runs: Path, *options: str) -> int:
    arguments = [*TINY, "--data.root", str(root), "--runs", str(runs), "--name", "mine", *options]
    return run_cli(training.main, arguments)


def evaluate(root: Path, weights: Path, *options: str) -> int:
    arguments = ["--weights", str(weights), "--data_root", str(root), "--device", "cpu", *options]
    return run_cli(evaluation.main, arguments)


def complaint(capsys: Capture, code: int) -> str:
    """The one line on stderr of a command that ended with `code`."""
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error.removeprefix("error: ").rstrip("\n")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def truncate(root: Path) -> None:
    path = first(root, "mini_coco_det/*/images/*")
    path.write_bytes(path.read_bytes()[:600])


def shrink_mask(root: Path) -> None:
    path = first(root, "mini_voc_seg/*/masks/*")
    with Image.open(path) as mask:
        small = mask.resize((10, 12), Image.Resampling.NEAREST)
    small.save(path)


def foreign_index(root: Path) -> None:
    path = first(root, "mini_voc_seg/*/masks/*")
    with Image.open(path) as mask:
        palette, values = mask.getpalette(), np.array(mask)
    values[3, 4] = 77
    changed = Image.fromarray(values)
    changed.putpalette(palette or [])
    changed.save(path)


def no_images(root: Path) -> None:
    for path in root.glob("imagenette_160/*/*/*"):
        path.unlink()


def change_annotations(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for path in root.glob("mini_coco_det/*/annotations.json"):
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


def keep_one_split(root: Path, split: str) -> None:
    """Leave one split of every set, so that a spoilt one is the one that is read."""
    for path in root.glob(f"*/{'val' if split == 'train' else 'train'}"):
        shutil.rmtree(path)


BROKEN: dict[str, tuple[Spoil, tuple[str, ...], str]] = {
    "missing set": (lambda r: shutil.rmtree(r / "mini_voc_seg"), ("seg", "data.download", "mini_coco_det"), "seg"),
    "missing root": (shutil.rmtree, ("no such folder", "python -m data.download --root data"), ""),
    "empty folder": (no_images, ("classification set", "one folder of images per class", "data.download"), "cls"),
    "truncated image": (truncate, ("images/000001.jpg: cannot be decoded", "download it again"), "det"),
    "mask of another size": (shrink_mask, ("masks/000001.png: the mask has 10 x 12", "save the mask at"), "seg"),
    "index above the classes": (foreign_index, ("masks/000001.png: mask value 77", "5 classes", "classes.txt"), "seg"),
    "no JSON": (
        lambda r: [p.write_text("{no") for p in r.glob("mini_coco_det/*/*.json")],
        ("annotations.json: not valid JSON", "line 1", "download it again"),
        "det",
    ),
    "no image with any class": (
        lambda r: change_annotations(r, lambda d: d.update(annotations=[])),
        ("annotations.json: no usable annotation", "disc, square, triangle, star", "check that"),
        "det",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_training_refuses_a_broken_set(case: str, sets: Path, tmp_path: Path, capsys: Capture) -> None:
    spoil, parts, _ = BROKEN[case]
    spoil(sets)
    text = complaint(capsys, train(sets, tmp_path / "runs", "--stage", "seg"))
    for part in (str(sets), *parts):
        assert part in text
    assert not (tmp_path / "runs").exists(), "nothing is left of a run that never began"


@pytest.mark.parametrize("case", BROKEN)
def test_evaluation_refuses_a_broken_set(case: str, sets: Path, finished: Path, capsys: Capture) -> None:
    spoil, parts, task = BROKEN[case]
    spoil(sets)
    if sets.exists():
        keep_one_split(sets, "train")
    text = complaint(capsys, evaluate(sets, finished / "seg.pt", "--tasks", task or "all"))
    for part in (str(sets), *parts):
        assert part in text


def test_a_broken_set_does_not_keep_the_others_from_being_scored(sets: Path, finished: Path, capsys: Capture) -> None:
    foreign_index(sets)
    keep_one_split(sets, "train")
    code = evaluate(sets, finished / "seg.pt", "--tasks", "seg,cls")
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: segmentation is not evaluated: ")
    assert captured.err.count("\n") == 1
    scores = json.loads(captured.out.splitlines()[-1])
    assert scores["mIoU"] is None
    assert scores["Top-1"] is not None


def test_a_box_outside_its_image_is_noted_and_training_goes_on(sets: Path, tmp_path: Path, capsys: Capture) -> None:
    def move(document: dict[str, Any]) -> None:
        document["annotations"][0]["bbox"] = [1000, 1000, 5, 5]
        document["annotations"][1]["bbox"][0] = -5

    change_annotations(sets, move)
    assert train(sets, tmp_path / "runs", "--stage", "det", "--order", "[det]") == 0
    out = capsys.readouterr().out
    assert "1 boxes outside their image (dropped): id 1" in out
    assert "1 boxes that stick out of their image (clipped): id 2" in out
    assert (tmp_path / "runs" / "mine" / "det.pt").is_file()


def junk(tmp_path: Path) -> Path:
    path = tmp_path / "junk.pt"
    path.write_text("no checkpoint")
    return path


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_file_that_is_no_checkpoint_is_refused(command: str, drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    path = junk(tmp_path)
    if command == "train":
        code = train(drawn, tmp_path / "runs", "--stage", "seg", "--init", str(path))
    else:
        code = evaluate(drawn, path)
    text = complaint(capsys, code)
    assert text == f"{path} is no checkpoint or a damaged one: give a file written by engine.train"


def test_weights_of_another_model_are_no_start(drawn: Path, finished: Path, tmp_path: Path, capsys: Capture) -> None:
    weights = finished / "seg.pt"
    options = ["--stage", "seg", "--init", str(weights), "--model.dim", "64"]
    text = complaint(capsys, train(drawn, tmp_path / "runs", *options))
    assert text.startswith(f"{weights} holds another model: ")
    assert "choose another --init" in text
    assert not list((tmp_path / "runs").rglob("*.pt"))


@pytest.mark.parametrize(("stage", "before"), [("det", "seg"), ("cls", "det")])
def test_a_stage_without_the_one_before_names_what_to_run(
    stage: str, before: str, drawn: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = complaint(capsys, train(drawn, tmp_path / "runs", "--stage", stage))
    missing = tmp_path / "runs" / "mine" / f"{before}.pt"
    assert text == (
        f"stage {stage} starts from {missing}, which is missing: "
        f"run `python -m engine.train --stage {before} --name mine` first"
    )
    assert not (tmp_path / "runs").exists()


def test_a_stage_below_a_finished_one_is_not_trained_anew(drawn: Path, run: Path, capsys: Capture) -> None:
    (run / "seg.pt").rename(run / "det.pt")
    before = content(run)
    for options in (["--resume"], []):
        text = complaint(capsys, train(drawn, run.parent, "--stage", "all", *options))
        assert text == (
            f"stage seg comes before det in order ['seg', 'det', 'cls'], but {run} holds det.pt alone: give the order "
            "it was trained in, put seg.pt back, or give another --name"
        )
    assert content(run) == before


@pytest.mark.parametrize("stage", ["seg", "all"])
def test_a_finished_run_is_not_overwritten(stage: str, drawn: Path, run: Path, capsys: Capture) -> None:
    before = content(run)
    text = complaint(capsys, train(drawn, run.parent, "--stage", stage))
    assert text == f"{run} already holds finished stages (seg): add --resume to go on, or give another --name"
    assert content(run) == before


def test_a_damaged_last_pt_stops_a_resume_and_harms_nothing(drawn: Path, run: Path, capsys: Capture) -> None:
    (run / "last.pt").write_bytes((run / "seg.pt").read_bytes()[:5000])
    before = content(run)
    text = complaint(capsys, train(drawn, run.parent, "--stage", "det", "--resume"))
    assert text.startswith(f"{run / 'last.pt'} is no checkpoint or a damaged one")
    assert content(run) == before


def test_a_damaged_checkpoint_of_the_stage_before_is_named(drawn: Path, run: Path, capsys: Capture) -> None:
    (run / "seg.pt").write_bytes((run / "seg.pt").read_bytes()[:5000])
    text = complaint(capsys, train(drawn, run.parent, "--stage", "det"))
    assert text.startswith(f"{run / 'seg.pt'} is no checkpoint or a damaged one")


def test_a_loss_that_is_no_number_stops_and_names_the_step(
    drawn: Path, run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Criterion.__call__, []

    def broken(self: Criterion, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        losses = original(self, *arguments)
        return {**losses, "giou": losses["giou"] * (float("nan") if len(calls) > 2 else 1.0)}

    monkeypatch.setattr(Criterion, "__call__", broken)
    before = content(run)
    text = complaint(capsys, train(drawn, run.parent, "--stage", "det", "--optim.epochs.det", "3"))
    assert text.startswith("stage det, epoch 2: loss 'giou' is nan at step 2")
    assert str(run) in text
    assert "lower optim.lr or set --precision fp32, then --resume" in text
    after = content(run)
    assert after["seg.pt"] == before["seg.pt"]
    assert not any(name.startswith("det.pt") or name.endswith(".tmp") for name in after)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model.layers", "5"], "set model.layers to 2 or 3"),
        (["--model.heads", "3"], "model.dim 32 must be a multiple of 8 and of model.heads 3"),
        (["--model.queries", "500"], "model.queries 500 is more than the 84 locations"),
        (["--model.backbone", "resnet"], "unknown backbone 'resnet': choose one of"),
        (["--continual.replay", "11"], "continual.replay is 11"),
        (["--data.size", "65"], "data.size is 65: it must be a multiple of 32"),
        (["--optim.lrr", "1"], "did you mean optim.lr?"),
        (["--init", "no.pt"], "no.pt is not there"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(
    options: list[str], text: str, drawn: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert text in complaint(capsys, train(drawn, tmp_path / "runs", "--stage", "seg", *options))


def test_a_folder_that_cannot_be_written_is_named(drawn: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "runs").write_text("in the way")
    text = complaint(capsys, train(drawn, tmp_path / "runs", "--stage", "seg"))
    assert text.startswith(f"cannot write {tmp_path / 'runs' / 'mine' / '.lock'}: Not a directory")
    assert (tmp_path / "runs").read_text() == "in the way"
