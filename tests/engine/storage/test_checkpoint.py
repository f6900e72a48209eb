"""Checkpoints come back bit for bit, run no code, and a failed write costs nothing."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.storage import checkpoint
from engine.storage.checkpoint import FORMAT, build_model, load, load_model, load_weights, model_content, save
from engine.storage.errors import UserError
from engine.storage.files import write_text
from models.onehead import ModelConfig, OneHead
from models.postprocess import THRESHOLD

CLASSES = {"det": ("cat", "dog"), "seg": ("background", "cat", "dog"), "cls": ("church", "golf ball")}
SHAPE = ModelConfig(dim=32, heads=2, hidden=64, queries=5)


@pytest.fixture(scope="module")
def model() -> OneHead:
    """A small network whose batch norms have seen something."""
    torch.manual_seed(0)
    built = OneHead(SHAPE, CLASSES, input_size=64)
    built.train()(torch.rand(4, 3, 64, 64))
    return built.eval()


@pytest.fixture
def path(model: OneHead, tmp_path: Path) -> Path:
    found = tmp_path / "runs" / "seg.pt"
    save(found, {**model_content(model), "stage": "seg"})
    return found


def refusal(action: Callable[..., Any], *arguments: Any) -> str:
    """The sentence with which a call refuses its arguments."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_model_comes_back_with_bit_identical_outputs(model: OneHead, path: Path) -> None:
    again = load_model(path)
    assert (again.classes, again.input_size, again.config) == (model.classes, 64, SHAPE)
    assert not any(m.training for m in again.modules())
    state = again.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = load_model(path)(image), again(image)
        original = model.to(memory_format=torch.channels_last)(image)
    for name in ("pred_boxes", "pred_logits", "pred_masks", "pred_class"):
        assert torch.equal(one[name], other[name])
        assert torch.equal(one[name], original[name])


@pytest.mark.parametrize("shape", [{}, {"exclusive": True}])
def test_a_network_whose_classes_share_a_softmax_is_refused(shape: dict[str, bool], path: Path) -> None:
    content = load(path)
    content["architecture"] |= shape
    del content["threshold"]  # it came later than the setting
    with pytest.raises(UserError, match=r"an older file holds another model .* classes of objects share one softmax"):
        build_model(content, "an older file")
    content["architecture"]["exclusive"] = False
    assert build_model(content, "a file from between").config == SHAPE


def test_half_precision_weights_load_as_float32(model: OneHead, tmp_path: Path) -> None:
    content = model_content(model)
    content["model"] = {k: v.half() if v.is_floating_point() else v for k, v in content["model"].items()}
    save(tmp_path / "half.pt", content)
    again = load_model(tmp_path / "half.pt")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.head.projection.weight, model.head.projection.weight.half().float())


def test_the_threshold_of_boxes_is_kept_and_older_files_have_the_usual_one(model: OneHead, tmp_path: Path) -> None:
    content = model_content(model)
    save(tmp_path / "a.pt", {**content, "threshold": 0.61})
    assert load_model(tmp_path / "a.pt").threshold == 0.61
    del content["threshold"]
    content["architecture"]["exclusive"] = False  # as files of that time have it
    save(tmp_path / "old.pt", content)
    assert load_model(tmp_path / "old.pt").threshold == THRESHOLD


def test_everything_plain_survives(tmp_path: Path) -> None:
    content = {"rows": [{"loss": 0.5, "mAP": None}], "replay": {"images": torch.arange(6, dtype=torch.uint8)}}
    save(tmp_path / "a.pt", content)
    again = load(str(tmp_path / "a.pt"))
    assert again["format"] == FORMAT
    assert again["rows"] == content["rows"]
    assert torch.equal(again["replay"]["images"], content["replay"]["images"])


def test_a_save_leaves_nothing_but_its_file(path: Path) -> None:
    assert names_in(path.parent) == ["seg.pt"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(load, tmp_path / "no.pt").startswith(f"{tmp_path / 'no.pt'} is not there: give the path of a check")
    assert "is not there" in refusal(load, tmp_path)


class Evil:
    """Pickled, it creates a file as soon as somebody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def foreign_zip(target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("notes.txt", "no tensors")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda p: p.write_text("no checkpoint"), "is no checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), "is no checkpoint"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"format": FORMAT})), "is no checkpoint"),
    "zip": (foreign_zip, "was not loaded: it is damaged or holds Python objects"),
    "other program": (lambda p: torch.save({"state_dict": {"w": torch.zeros(1)}}, p), "is no OneHead checkpoint"),
    "a tensor": (lambda p: torch.save(torch.zeros(3), p), "is no OneHead checkpoint"),
    "older format": (lambda p: torch.save({"format": "onehead/0"}, p), "is no OneHead checkpoint"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("read", [load, load_model])
def test_a_file_of_something_else_is_refused_by_name(kind: str, read: Callable[..., Any], tmp_path: Path) -> None:
    write, expected = FOREIGN[kind]
    target = tmp_path / "some.pt"
    write(target)
    text = refusal(read, target)
    assert text.startswith(f"{target} {expected}")
    assert "give a file written by engine.train" in text or "Give a file written by engine.train" in text


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused_by_name(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refusal(load, path).startswith(f"{path} is no checkpoint or a damaged one")


def test_a_checkpoint_with_flipped_bytes_never_becomes_a_model_unnoticed(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    start = whole.index(b"data.pkl") + 200
    whole[start : start + 64] = bytes(64)
    path.write_bytes(bytes(whole))
    assert str(path) in refusal(load_model, path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_never_runs(tmp_path: Path, legacy: bool) -> None:
    target, marker = tmp_path / "evil.pt", tmp_path / "marker"
    content = {"format": FORMAT, "model": Evil(marker)}
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    assert refusal(load_model, target).startswith(f"{target} ")
    target.write_bytes(pickle.dumps(content))
    assert refusal(load_model, target).startswith(f"{target} ")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "the trap itself does not work"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", {"dim": 64, "heads": 2, "hidden": 64, "queries": 5}),
        ("architecture", {"dim": 32, "heads": 2, "hidden": 64, "queries": 5, "layers": 2}),
        ("architecture", {"dim": 30, "heads": 4}),
        ("architecture", {"backbone": "unheard_of"}),
        ("architecture", {"width": 3}),
        ("architecture", None),
        ("classes", {**CLASSES, "det": ("cat",)}),
        ("classes", {"det": ("cat",)}),
        ("classes", None),
        ("model", {}),
        ("model", None),
        ("threshold", 1.5),
        ("threshold", float("nan")),
        ("threshold", "high"),
    ],
)
def test_an_architecture_that_does_not_fit_its_weights_is_refused(
    model: OneHead, tmp_path: Path, key: str, value: object
) -> None:
    target = tmp_path / "odd.pt"
    save(target, {**model_content(model), key: value})
    text = refusal(load_model, target)
    assert text.startswith(f"{target} holds another model than this program builds (")
    assert text.endswith("use the program version that wrote it, or train anew")


@pytest.mark.parametrize("key", ["architecture", "classes", "model", "input_size"])
def test_a_checkpoint_that_lacks_a_part_is_refused(model: OneHead, key: str) -> None:
    content = model_content(model)
    del content[key]
    assert f"'{key}'" in refusal(build_model, content, "some.pt")


def test_weights_of_other_classes_fit_but_for_their_rows(model: OneHead, path: Path) -> None:
    torch.manual_seed(1)
    other = OneHead(SHAPE, {**CLASSES, "seg": ("background", "cat")}, input_size=64)
    assert load_weights(other, path) == ["seg"]
    for block in ("box", "conf", "det", "cls", "mask"):
        own, theirs = (m.head.projection.weight[m.head.block(block)] for m in (other, model))
        assert torch.equal(own, theirs), block
    assert other.head.projection.weight[other.head.block("present")].shape == (2, 32)
    assert other.head.class_queries.shape == (2, 32)


def test_weights_of_another_model_are_refused(tmp_path: Path, model: OneHead) -> None:
    target = tmp_path / "other.pt"
    wider = OneHead(replace(SHAPE, dim=64), CLASSES, input_size=64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save(target, model_content(wider))
    text = refusal(load_weights, model, target)
    assert text.startswith(f"{target} holds another model: ")
    assert text.endswith("choose another --init, or the --model settings it was made with")
    for content in ({"model": {"neck": 3}}, {"rows": []}, {"model": None}):
        save(target, content)
        assert refusal(load_weights, model, target).startswith(f"{target} holds another model than this program builds")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 4, "points": 2}, "model.heads 4, not 2: choose another --init, or set --model.heads 4"),
    ],
)
def test_weights_of_equal_shapes_and_another_meaning_are_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path, model: OneHead
) -> None:
    target, other = tmp_path / "other.pt", OneHead(replace(SHAPE, **changes), CLASSES, input_size=64)
    assert [v.shape for v in other.state_dict().values()] == [v.shape for v in model.state_dict().values()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save(target, model_content(other))
    assert refusal(load_weights, model, target) == f"{target} has {sentence}"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_of_more_layers_are_refused_though_all_that_is_needed_fits(tmp_path: Path, model: OneHead) -> None:
    target, smaller = tmp_path / "more.pt", OneHead(replace(SHAPE, layers=2), CLASSES, input_size=64)
    save(target, model_content(model))
    text = refusal(load_weights, smaller, target)
    assert text == f"{target} has model.layers 3, not 2: choose another --init, or set --model.layers 3"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        assert len(names_in(path.parent)) > 1, "something was written before"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, step, fail)
    text = refusal(save, path, {"model": {}})
    assert text == (
        f"cannot write {path}: No space left on device; the previous file is untouched. "
        "Free space or choose another folder with --runs"
    )
    assert path.read_bytes() == before
    assert names_in(path.parent) == ["seg.pt"]
    assert "untouched" not in refusal(save, path.with_name("det.pt"), {"model": {}})
    assert names_in(path.parent) == ["seg.pt"]


def test_an_interrupted_write_leaves_the_previous_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"model": {}})
    assert path.read_bytes() == before
    assert names_in(path.parent) == ["seg.pt"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to write any file beyond `size` bytes, as a full disk does (Python ignores SIGXFSZ)."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_kernel_refuses_leaves_the_previous_checkpoint(path: Path) -> None:
    before = path.read_bytes()
    with largest_file(100_000):
        text = refusal(save, path, {"model": {"w": torch.zeros(100_000)}})
    assert text.startswith(f"cannot write {path}: File too large; ")
    assert "the previous file is untouched" in text
    assert path.read_bytes() == before
    assert names_in(path.parent) == ["seg.pt"]
    save(path, {"model": {"w": torch.zeros(100_000)}})
    assert load(path)["model"]["w"].shape == (100_000,)


@pytest.mark.parametrize("write", [lambda p: save(p, {}), lambda p: write_text(p, "x")], ids=["checkpoint", "text"])
def test_a_folder_that_is_a_file_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "runs").write_text("in the way")
    target = tmp_path / "runs" / "mine" / "seg.pt"
    assert refusal(write, target).startswith(f"cannot write {target}: Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_named(path: Path) -> None:
    before = path.read_bytes()
    path.parent.chmod(0o555)
    try:
        assert refusal(save, path, {}).startswith(f"cannot write {path}: Permission denied; the previous file is")
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == before


def test_text_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "metrics.jsonl"
    write_text(target, "one\n")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert "No space left on device" in refusal(write_text, target, "one\ntwo\n")
    assert target.read_text() == "one\n"
    assert names_in(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("backbone", ["mobilenetv3_small", "efficientnet_b0", "efficientnet_lite0", "yolov8n"])
def test_every_backbone_comes_back(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    built = OneHead(replace(SHAPE, backbone=backbone), CLASSES, input_size=64)
    save(tmp_path / "a.pt", model_content(built))
    again = load_model(tmp_path / "a.pt").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in built.state_dict().items())


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
        packed.writestr("archive/data/999", bytes(50_000_000))
    assert (tmp_path / "bomb.pt").stat().st_size < 5_000_000
    assert refusal(load, tmp_path / "bomb.pt").startswith(f"{tmp_path / 'bomb.pt'} is no checkpoint or a damaged one")


def test_a_backbone_of_stage_0_is_no_model(tmp_path: Path) -> None:
    save(tmp_path / "stage0.pt", {"stage": "pretrain", "model": {"backbone.weight": torch.zeros(1)}})
    assert refusal(load_model, tmp_path / "stage0.pt").endswith(
        f"is the backbone of stage 0, to start a training from (--init {tmp_path / 'stage0.pt'}), not a model"
    )


def test_a_false_size_is_refused_before_it_takes_memory(model: OneHead, tmp_path: Path) -> None:
    content = model_content(model)
    save(tmp_path / "odd.pt", {**content, "architecture": {**content["architecture"], "hidden": 2**33}})
    assert "holds another model than this program builds (" in refusal(load_model, tmp_path / "odd.pt")
    save(tmp_path / "odd.pt", {**content, "architecture": {**content["architecture"], "heads": 0}})
    assert "holds another model than this program builds (" in refusal(load_model, tmp_path / "odd.pt")


def test_an_error_without_text_is_named_by_its_type(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise EOFError

    monkeypatch.setattr(checkpoint.torch, "load", fail)
    assert "(EOFError)" in refusal(load, path)
