from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eval as command
from data.catalog import load_set
from data.errors import DataError
from engine.evaluation.evaluate import Evaluator
from engine.evaluation.metrics import SCORE_NAMES
from engine.storage.checkpoint import model_content, save
from engine.storage.errors import UserError, run_cli
from models.deploy import LastLayer
from models.onehead import ModelConfig, OneHead
from tests.engine.oracle import CLASSES, Oracle, write_cls, write_det, write_sets


def run(
    monkeypatch: pytest.MonkeyPatch, oracle: Oracle, root: Path, *options: str, content: dict[str, Any] | None = None
) -> int:
    """Run the command line with `oracle` as the model behind --weights, a file that holds `content`."""
    monkeypatch.setattr(command, "load_model", lambda path, device: oracle)
    monkeypatch.setattr(command, "load", lambda path: content or {})
    return run_cli(command.main, ["--weights", "model.pt", "--data_root", str(root), "--device", "cpu", *options])


def last_line(stdout: str) -> dict[str, float | None]:
    return json.loads(stdout.splitlines()[-1])


def test_all_tasks_from_a_checkpoint_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_sets(tmp_path)
    torch.manual_seed(0)
    weights = tmp_path / "model.pt"
    save(weights, model_content(OneHead(ModelConfig(queries=10), CLASSES, input_size=64)))
    script = Path(command.__file__)
    arguments = ["--weights", str(weights), "--data_root", str(tmp_path), "--tasks", "all", "--device", "cpu"]
    done = subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = last_line(done.stdout)
    assert {"mAP", "AP50", "mIoU", "Top-1"} <= scores.keys()
    assert all(value is None or 0 <= value <= 1 for value in scores.values())


def test_the_deployed_copy_is_scored_as_the_trained_network_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sets(tmp_path)
    torch.manual_seed(1)
    trained = OneHead(ModelConfig(queries=10), CLASSES, input_size=64).eval()
    save(tmp_path / "model.pt", model_content(trained))
    assert isinstance(command.load_model(tmp_path / "model.pt", "cpu"), LastLayer)
    assert run_cli(command.main, ["--weights", str(tmp_path / "model.pt"), "--data_root", str(tmp_path)]) == 0
    found = last_line(capsys.readouterr().out)
    sets = {task: load_set(tmp_path, task, "val", CLASSES[task]) for task in ("det", "seg", "cls")}
    for name, value in Evaluator(sets, trained.input_size).run(trained).scores.items():
        expected = pytest.approx(value, abs=2e-3)
        assert found[name] is None if math.isnan(value) else found[name] == expected, name


def test_the_report_names_splits_classes_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, write_sets(tmp_path), tmp_path) == 0
    captured = capsys.readouterr()
    for text in ("det  val: 3 images", "seg  val: 2 images", "cls  val: 3 images", "church", "background"):
        assert text in captured.out
    assert captured.err == ""
    scores = {name: 1.0 for names in SCORE_NAMES.values() for name in names}
    assert last_line(captured.out) == {**scores, "seen_in_training": None}
    assert [line.split() for line in captured.out.splitlines() if line.startswith("Top-1 ")] == [["Top-1", "1.0000"]]


@pytest.mark.parametrize("words", [["det,cls"], ["det", "cls"], ["classification, detection"], ["CLS, Det"]])
def test_tasks_are_given_with_comma_or_blank_in_either_name(words: list[str]) -> None:
    assert command.parse_tasks(words) == (["det", "cls"], {"det", "cls"})


def test_all_names_no_task() -> None:
    assert command.parse_tasks(["all"]) == (["det", "seg", "cls"], set())
    assert command.parse_tasks(["all,seg"]) == (["det", "seg", "cls"], {"seg"})


@pytest.mark.parametrize("words", [["det,pose"], [","]])
def test_an_unknown_task_is_refused_with_the_choices(words: list[str]) -> None:
    with pytest.raises(UserError, match="choose all, or any of det, detection, seg"):
        command.parse_tasks(words)


def test_only_the_scores_of_the_chosen_task_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, write_sets(tmp_path), tmp_path, "--tasks", "cls") == 0
    assert last_line(capsys.readouterr().out) == {"Top-1": 1.0, "Top-1_known": 1.0, "seen_in_training": None}


def test_the_test_split_comes_before_val_unless_val_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = write_sets(tmp_path, "val")
    write_sets(tmp_path, "test")
    run(monkeypatch, oracle, tmp_path, "--tasks", "det")
    assert "det  test: 3 images" in capsys.readouterr().out
    run(monkeypatch, oracle, tmp_path, "--tasks", "det", "--split", "val")
    assert "det  val: 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(("tasks", "code"), [("all", 0), ("all,seg", 2), ("det,seg", 2)])
def test_a_missing_set_is_reported_and_fails_if_its_task_was_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tasks: str,
    code: int,
) -> None:
    oracle = Oracle({**write_det(tmp_path), **write_cls(tmp_path)})
    assert run(monkeypatch, oracle, tmp_path, "--tasks", tasks) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{'error' if code else 'note'}: segmentation is not evaluated: ")
    scores = last_line(captured.out)
    assert scores["mAP"] == 1.0
    assert scores["mIoU"] is None
    assert scores["pixel_acc"] is None


def test_no_set_at_all_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, Oracle({}), tmp_path) == 2
    captured = capsys.readouterr()
    assert [line.split()[1] for line in captured.err.splitlines()] == [
        "detection",
        "segmentation",
        "classification",
        "no",
    ]
    assert captured.err.endswith("error: no task was evaluated\n")
    assert set(last_line(captured.out).values()) == {None}


def test_a_broken_image_costs_its_task_only_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = write_sets(tmp_path)
    broken = tmp_path / "imagenette_160" / "val" / "n01440764" / "6.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert run(monkeypatch, oracle, tmp_path) == 2
    captured = capsys.readouterr()
    assert "error: classification is not evaluated: " in captured.err
    assert "6.png" in captured.err
    assert last_line(captured.out)["Top-1"] is None
    assert last_line(captured.out)["mAP"] == 1.0


def test_categories_the_model_does_not_know_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = write_sets(tmp_path)
    folder = tmp_path / "imagenette_160" / "val"
    shutil.copytree(folder / "n03028079", folder / "zebra")
    assert run(monkeypatch, oracle, tmp_path, "--tasks", "cls") == 0
    out = capsys.readouterr().out
    assert "unknown to the model, counted as missed: zebra" in out
    assert last_line(out) == {"Top-1": 0.75, "Top-1_known": 1.0, "seen_in_training": None}


def test_folders_of_no_class_cost_their_task_only_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = write_sets(tmp_path)
    folder = tmp_path / "imagenette_160" / "val"
    for name, other in (("n01440764", "first"), ("n03028079", "second")):
        (folder / name).rename(folder / other)
    assert run(monkeypatch, oracle, tmp_path) == 2
    captured = capsys.readouterr()
    complaint = f"error: classification is not evaluated: {folder}: none of the folders (first, second) is a class of"
    assert captured.err.startswith(complaint)
    assert last_line(captured.out)["Top-1"] is None
    assert last_line(captured.out)["mAP"] == last_line(captured.out)["mIoU"] == 1.0


def test_confusion_matrices_are_printed_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = write_sets(tmp_path)
    oracle.answers[6].label = 1
    run(monkeypatch, oracle, tmp_path, "--tasks", "cls")
    assert "truth / predicted" not in capsys.readouterr().out
    run(monkeypatch, oracle, tmp_path, "--tasks", "cls", "--confusion")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("truth / predicted")))
    assert [line.split() for line in lines[start + 2 : start + 4]] == [
        ["0", "tench", "50", "50"],
        ["1", "church", ".", "100"],
    ]


def test_the_json_file_holds_scores_tables_and_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, path = write_sets(tmp_path / "data"), tmp_path / "scores.json"
    assert run(monkeypatch, oracle, tmp_path / "data", "--tasks", "det", "cls", "--json", str(path)) == 0
    content = json.loads(path.read_text())
    assert content["mAP"] == content["Top-1"] == 1.0
    assert content["per_class"]["cls"]["church"] == {"accuracy": 1.0, "images": 1.0}
    assert content["sets"]["det"]["split"] == "val"
    assert content["sets"]["det"]["images"] == 3


def test_user_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "notes.pt"
    text.write_text("no checkpoint")
    cases = {
        "missing.pt": ["--weights", str(tmp_path / "missing.pt"), "--data_root", str(tmp_path)],
        "notes.pt": ["--weights", str(text), "--data_root", str(tmp_path)],
        "x" * 300: ["--weights", str(text), "--data_root", str(tmp_path / ("x" * 300))],
        "nowhere": ["--weights", str(text), "--data_root", str(tmp_path / "nowhere")],
    }
    for name, arguments in cases.items():
        assert run_cli(command.main, arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert name in captured.err
        assert captured.err.count("\n") == 1


def test_a_json_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "no folder" / "scores.json"
    assert run(monkeypatch, write_sets(tmp_path), tmp_path, "--tasks", "cls", "--json", str(target)) == 2
    printed = capsys.readouterr()
    assert f"error: --json {target}: No such file or directory" in printed.err
    assert last_line(printed.out)["Top-1"] == 1.0  # what was scored is printed all the same


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(command.main, ["--weights", "w.pt", "--data_root", str(tmp_path), "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: torch sees no CUDA device; use --device auto or cpu\n"


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_the_batch_size_is_a_positive_number(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--weights", "w.pt", "--batch_size", size])
    assert f"'{size}' is not a whole number above 0" in capsys.readouterr().err


def test_help_is_grouped_and_shows_defaults_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "what to score:",
        "how:",
        "output:",
        "(default: data)",
        "(default: 8)",
        "(default: test, else val",
    ):
        assert part in text
    assert "python eval.py --weights weights/onehead.pt --data_root data --tasks all" in text


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no file; give one"), 2, "error: no file; give one\n"),
        (DataError("x.json: broken"), 2, "error: x.json: broken\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_cli_turns_errors_into_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: object) -> int:
        raise error

    assert run_cli(fail) == code
    assert capsys.readouterr() == ("", line)


def test_run_cli_passes_arguments_and_lets_faults_through() -> None:
    assert run_cli(lambda argv: len(argv or ()), ["a", "b", "c"]) == 3
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda argv: 1 // 0)


def test_what_is_only_about_a_result_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, str]:
        raise RuntimeError("no version of anything")

    monkeypatch.setattr(command, "provenance", broken)
    oracle, path = write_sets(tmp_path / "data"), tmp_path / "scores.json"
    assert run(monkeypatch, oracle, tmp_path / "data", "--tasks", "cls", "--json", str(path)) == 0
    printed = capsys.readouterr()
    assert last_line(printed.out)["Top-1"] == json.loads(path.read_text())["Top-1"] == 1.0
    assert printed.err == "note: the file names no processor and no versions (no version of anything)\n"
