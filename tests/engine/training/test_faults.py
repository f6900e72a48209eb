"""Faults of the machine: full disk, read-only folder, no memory, no W&B, a second run, a dead peer: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import wandb

from engine import train as training
from engine.settings.config import TrackConfig
from engine.storage.checkpoint import load, save
from engine.storage.errors import UserError, run_cli
from engine.storage.files import run_lock, write_text
from engine.tracking.tracker import Tracker
from engine.training.stage import StageLoop
from models.criterion import Criterion
from tests.engine.processes import started
from tests.engine.storage.test_checkpoint import largest_file
from tests.engine.test_bad_input import complaint
from tests.engine.training.test_resume import equal

ROOT = Path(__file__).parents[3]
Capture = pytest.CaptureFixture[str]


def train(arguments: list[str], *more: str) -> int:
    return run_cli(training.main, [*arguments, *more])


def until(condition: Any, seconds: float = 250) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# --- one run a folder


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_dead(
    tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "runs" / "tiny"
    first = started(tiny)
    until((folder / "config.yaml").is_file)
    assert complaint(capsys, train(tiny, "--resume")) == (
        f"{folder}: another run is at work there; stop it, or give another --name"
    )
    first.kill()
    first.join()
    assert train(tiny, "--resume", "--stage", "seg", "--order", "[seg]", "--optim.epochs.seg", "2") == 0


def test_a_run_that_never_began_leaves_no_folder_and_one_that_was_there_stays(tmp_path: Path) -> None:
    with run_lock(tmp_path / "runs" / "mine"):
        assert (tmp_path / "runs" / "mine").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "last.pt.77.tmp").write_text("half of it")
    with run_lock(tmp_path / "runs" / "mine"):
        assert os.listdir(tmp_path / "runs" / "mine") == [".lock"]
    assert (tmp_path / "runs" / "mine").is_dir()


def test_only_the_first_of_several_processes_takes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_lock(tmp_path / "mine"):
        with pytest.raises(UserError, match="another run is at work there"), run_lock(tmp_path / "mine"):
            pass
        monkeypatch.setenv("RANK", "1")
        with run_lock(tmp_path / "mine"):
            monkeypatch.setenv("RANK", "0")


# --- disk


def test_a_disk_that_fills_up_costs_no_finished_stage(tiny: list[str], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "runs" / "tiny"
    assert train(tiny, "--stage", "seg") == 0
    before = (folder / "seg.pt").read_bytes()
    capsys.readouterr()
    with largest_file(100_000):
        text = complaint(capsys, train(tiny, "--stage", "det"))
    assert text.startswith(f"cannot write {folder / 'last.pt'}: File too large. Free space")
    assert (folder / "seg.pt").read_bytes() == before
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp" or p.name == "last.pt"]
    assert train(tiny, "--stage", "det", "--resume") == 0
    assert load(folder / "det.pt")["rows"][-1]["epoch"] == 2


def test_whatever_else_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    def fill(argv: object) -> int:
        with largest_file(10):
            (tmp_path / "plot.png").write_bytes(bytes(1000))
        return 0

    assert "File too large; free space, or name a folder that can be written" in complaint(capsys, run_cli(fill))


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Give up root's right to write anywhere, if this is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_named_and_left_as_it_was() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        os.chmod(temporary, 0o755)
        folder = Path(temporary) / "mine"
        folder.mkdir()
        (folder / "seg.pt").write_bytes(b"old")
        folder.chmod(0o555)
        for write, name in (
            (lambda: save(folder / "seg.pt", {}), "seg.pt"),
            (lambda: write_text(folder / "metrics.jsonl", "x"), "metrics.jsonl"),
            (lambda: run_lock(folder).__enter__(), ".lock"),
        ):
            with ordinary_user(), pytest.raises(UserError, match=f"cannot write {folder / name}: Permission denied"):
                write()
        assert (folder / "seg.pt").read_bytes() == b"old"
        assert [p.name for p in folder.iterdir()] == ["seg.pt"]
        folder.chmod(0o755)


# --- memory and numbers


def test_out_of_memory_names_the_settings_to_lower(
    tiny: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tiny, "--stage", "seg") == 0
    before = (tmp_path / "runs" / "tiny" / "seg.pt").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(StageLoop, "losses", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    text = complaint(capsys, train(tiny, "--stage", "det"))
    assert text.startswith("out of memory (")
    assert text.endswith("; lower --optim.batch, --continual.replay_sets or --data.size (in stage 0 --pretrain.batch)")
    assert (tmp_path / "runs" / "tiny" / "seg.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory (CUDA out of"),
        (MemoryError(), "out of memory (no details); lower --batch_size"),
        (OSError(28, "No space left on device", "plot.png"), "plot.png: No space left on device; free space, or name"),
        (FileNotFoundError(2, "No such file", "x.pt"), "x.pt: No such file; check the path"),
        (OSError(36, "File name too long", "x.jpg"), "x.jpg: File name too long; check the path"),
        (RuntimeError("[pair.cc:553] Connection closed by peer"), "another process of this run ended ([pair.cc:553]"),
    ],
)
def test_faults_of_the_machine_are_one_sentence(error: Exception, sentence: str, capsys: Capture) -> None:
    def fail(argv: object) -> int:
        raise error

    assert complaint(capsys, run_cli(fail, memory="--batch_size")).startswith(sentence)


def test_faults_of_this_program_keep_their_traceback() -> None:
    for error in (RuntimeError("shapes differ"), OSError(22, "Invalid argument")):

        def fail(argv: object, error: Exception = error) -> int:
            raise error

        with pytest.raises(type(error)):
            run_cli(fail)


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(
    tiny: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Criterion.__call__, []

    def broken(self: Criterion, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        losses = original(self, *arguments)
        if len(calls) == 6:  # the last step of the second epoch: its loss is still finite
            name = next(iter(losses))
            losses[name] = losses[name] + torch.sqrt(losses[name] * 0)  # 0, but with the gradient inf * 0
        return losses

    monkeypatch.setattr(Criterion, "__call__", broken)
    text = complaint(capsys, train(tiny, "--stage", "seg", "--optim.epochs.seg", "3"))
    assert text.startswith("stage seg, epoch 2: the gradient's norm is nan at step 5.")
    assert "lower optim.lr or set --precision fp32, then --resume" in text
    last = load(tmp_path / "runs" / "tiny" / "last.pt")
    assert last["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in last["model"].values())


# --- Weights & Biases


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which nobody answers, and a key."""
    for name, value in (("BASE_URL", "http://127.0.0.1:9"), ("API_KEY", "0123456789" * 4), ("INIT_TIMEOUT", "2")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # or it would go by what the environment held before


@pytest.mark.usefixtures("unreachable")
def test_without_a_way_to_weights_and_biases_the_run_is_logged_offline(tmp_path: Path, capsys: Capture) -> None:
    tracker = Tracker(tmp_path, TrackConfig(wandb="online"), {"order": ["seg"]}, [])
    tracker.log({"stage": "seg", "epoch": 1, "loss": 2.0}, 15)
    tracker.close()
    assert "note: Weights & Biases cannot be reached (" in capsys.readouterr().out
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()] == [2.0]


@pytest.mark.usefixtures("unreachable")
def test_the_end_of_its_service_does_not_end_the_run(tmp_path: Path, capsys: Capture) -> None:
    tracker = Tracker(tmp_path, TrackConfig(wandb="offline"), {"order": ["seg"]}, [])
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("wandb"):
            child.kill()
            child.wait(10)
    time.sleep(0.5)
    for epoch in (1, 2, 3):
        tracker.log({"stage": "seg", "epoch": epoch, "loss": 1.0}, 15)
    tracker.close()
    with suppress(OSError):
        wandb.teardown()  # so that a later test in this process gets a new service
    assert capsys.readouterr().out.count("note: Weights & Biases is lost (") == 1
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").open()] == [1, 2, 3]


# --- several processes


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_can_be_resumed(tiny: list[str], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "engine.train", *tiny, "--resume", "--order", "[seg]", "--optim.epochs.seg", "12"]
    folder = tmp_path / "runs" / "tiny"
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until((folder / "last.pt").is_file, 200)
    workers = [p for p in psutil.Process(first.pid).children() if "engine.train" in p.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    _, printed = first.communicate(timeout=60)
    assert first.returncode != 0
    assert "Signal 9 (SIGKILL)" in printed
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    whole = subprocess.run([*command, "--name", "whole"], cwd=ROOT, check=False)
    assert whole.returncode == 0
    assert equal(*(load(tmp_path / "runs" / name / "seg.pt")["model"] for name in ("tiny", "whole")))
