from __future__ import annotations

import errno
import json
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

import eval as command
from engine.evaluation.metrics import predicted_mask
from engine.evaluation.prediction import predict
from engine.export import largest_difference, main, with_outputs
from engine.speed.int8 import IN_FLOAT, calibration_images, quantised
from engine.speed.onnx_model import FINAL, OUTPUTS, OnnxModel
from engine.storage import files
from engine.storage.checkpoint import load_model, model_content, save
from engine.storage.errors import UserError, run_cli
from models.boxes import to_xyxy
from models.onehead import ModelConfig, OneHead
from models.postprocess import detections
from tests.engine.oracle import CLASSES, write_sets

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt and its export, model.onnx."""
    path = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    model = OneHead(ModelConfig(dim=32, hidden=32, layers=2, queries=12), CLASSES, SIZE)
    torch.nn.init.normal_(model.head.projection.weight, std=0.1)  # so that boxes and classes differ between locations
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained: an untrained network gives the same everywhere
            module.momentum = None
    model.threshold = 0.61
    model.train()(torch.rand(8, 3, SIZE, SIZE))
    save(path / "model.pt", model_content(model))
    assert main(["--weights", str(path / "model.pt")]) == 0
    return path


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.manual_seed(1))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_raw_outputs_are_those_of_torch_for_any_batch(folder: Path, images: torch.Tensor, batch: int) -> None:
    off = largest_difference(load_model(folder / "model.pt"), OnnxModel(folder / "model.onnx", 1), images[:batch])
    assert max(off.values()) < 1e-3


def test_final_outputs_are_what_the_post_processing_of_torch_makes(folder: Path, images: torch.Tensor) -> None:
    with torch.no_grad():
        outputs = load_model(folder / "model.pt")(images)
    final = OnnxModel(folder / "model.onnx", 1).run(images, FINAL)
    for b, best in enumerate(detections(outputs)):
        torch.testing.assert_close(final["scores"][b], best["scores"], atol=1e-4, rtol=0)
        sure = best["scores"] > best["scores"].roll(-1) + 1e-4  # equals may change places
        sure &= best["scores"].roll(1) > best["scores"] + 1e-4
        assert sure.sum() > 5
        assert torch.equal(final["labels"][b][sure], best["labels"][sure])
        torch.testing.assert_close(final["boxes"][b][sure], to_xyxy(best["boxes"])[sure], atol=1e-3, rtol=0)
        mask = predicted_mask(outputs["pred_masks"][b], (SIZE, SIZE))
        assert (final["mask"][b] == mask).float().mean() > 0.999
    assert torch.equal(final["label"], outputs["pred_class"].argmax(1))


def test_the_file_carries_classes_and_size_and_passes_the_checker(folder: Path) -> None:
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    exported = OnnxModel(folder / "model.onnx")
    assert exported.classes == CLASSES
    assert exported.input_size == SIZE
    assert exported.threshold == 0.61


def test_eval_scores_the_export_as_it_scores_the_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sets(tmp_path)
    scores = []
    for name in ("model.pt", "model.onnx"):
        options = ["--weights", str(folder / name), "--data_root", str(tmp_path), "--device", "cpu"]
        assert run_cli(command.main, options) == 0
        scores.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        assert value == pytest.approx(scores[1][name], abs=2e-3), name


def test_what_is_no_export_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.onnx is not there"):
        OnnxModel(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="no OneHead model"):
        OnnxModel(tmp_path / "text.onnx")
    node = onnx.helper.make_node("Identity", ["images"], ["out"])
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in ("images", "out")]
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "other.onnx",
    )
    with pytest.raises(UserError, match="no OneHead model"):
        OnnxModel(tmp_path / "other.onnx")


def test_size_opset_and_half_precision_are_chosen_without_noise(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "small.onnx"
    weights = str(folder / "model.pt")
    assert main(["--weights", weights, "--out", str(out), "--size", "256", "--opset", "20", "--half"]) == 0
    captured = capfd.readouterr()
    assert not captured.err
    assert [line.split(":")[0] for line in captured.out.splitlines()] == [str(out), "largest difference to torch"]
    assert [path.name for path in out.parent.iterdir()] == ["small.onnx"]
    proto = onnx.load(out)
    assert next(entry.version for entry in proto.opset_import if not entry.domain) == 20
    halves = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert sum(len(t.raw_data) for t in halves) > 0.9 * sum(len(t.raw_data) for t in proto.graph.initializer)
    exported, model = OnnxModel(out, 1), load_model(weights)
    assert exported.input_size == 256  # has more rows to sample than float16 can count
    off = largest_difference(model, exported, torch.rand(8, 3, 256, 256, generator=torch.manual_seed(2)))
    assert 0 < off["pred_class"] < 1e-2


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_a_file_of_one_task_holds_what_that_task_needs_and_the_others_as_never_learnt(
    folder: Path, tmp_path: Path, images: torch.Tensor, task: str
) -> None:
    proto = onnx.load(folder / "model.onnx")
    part = with_outputs(proto, [task])  # type: ignore[list-item]
    assert len(part.graph.node) < len(proto.graph.node)
    assert {output.name for output in part.graph.output} == set(OUTPUTS[task])  # type: ignore[index]
    about = {"classes": {t: CLASSES[t] if t == task else () for t in CLASSES}, "input_size": SIZE}
    onnx.helper.set_model_props(part, {"onehead": json.dumps(about)})
    onnx.save(part, tmp_path / "part.onnx")
    alone, whole = OnnxModel(tmp_path / "part.onnx", 1), OnnxModel(folder / "model.onnx", 1)
    for name, value in alone.run(images, OUTPUTS[task]).items():  # type: ignore[index]
        torch.testing.assert_close(value, whole.run(images, [name])[name])
    found = predict(alone, Image.new("RGB", (80, 50), (90, 30, 200)), score=0.0)
    assert bool(found.boxes) == (task == "det")
    assert bool(found.regions) == (task == "seg")
    assert (found.label is not None) == (task == "cls")
    assert found.mask.shape == (50, 80)


def test_outputs_are_chosen_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cls.onnx"
    assert main(["--weights", str(folder / "model.pt"), "--out", str(out), "--tasks", "cls"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("largest difference to torch: pred_class ")
    assert OnnxModel(out).outputs == {"label", "pred_class"}
    assert OnnxModel(out).classes == {"det": (), "seg": (), "cls": CLASSES["cls"]}


def test_int8_keeps_all_convolutions_but_the_first_in_a_byte_each_and_answers_nearly_the_same(
    folder: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    for i, image in enumerate(images):
        to_pil_image(image).save(tmp_path / f"{i}.png")
    proto = onnx.load(folder / "model.onnx")
    small = quantised(proto, calibration_images(tmp_path, SIZE))
    kernels = [node.input[1] for node in proto.graph.node if node.op_type == "Conv"]
    bytes_ = {t.name for t in small.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4}
    assert len(bytes_) == len(kernels) - IN_FLOAT > 20
    assert {t.name for t in small.graph.initializer if t.data_type == onnx.TensorProto.FLOAT} >= {*kernels[:IN_FLOAT]}
    onnx.save(small, tmp_path / "int8.onnx")
    expected, found = (OnnxModel(path, 1)(images) for path in (folder / "model.onnx", tmp_path / "int8.onnx"))
    for name in ("pred_masks", "pred_class"):
        both = torch.stack([expected[name].flatten(), found[name].flatten()])
        assert 0.9 < float(torch.corrcoef(both)[0, 1]) < 1, name


def test_no_more_pictures_are_read_than_calibration_needs(tmp_path: Path) -> None:
    for i in range(7):
        Image.new("RGB", (9, 9), (10 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    seen = [round(float(image.mean()) * 255) for image in calibration_images(tmp_path, 32, count=3)]
    assert seen == [0, 20, 40]
    with pytest.raises(UserError, match="holds no pictures"):
        calibration_images(tmp_path / "none", 32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--out", "{weights}"), "is the file of --weights; name another"),
        (("--out", "model.bin"), "give a name that ends in .onnx"),
        (("--opset", "3"), "--opset 3: the installed onnx and torch write 18 to"),
        (("--size", "100"), "--size 100: 100 is no multiple of 32"),
        (("--size", "0"), "--size 0: 0 is no multiple of 32"),
    ],
)
def test_options_of_no_use_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, options: tuple[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.onnx"  # a checkpoint may be called so
    weights.write_bytes((folder / "model.pt").read_bytes())
    name, value = options
    given = ["--weights", str(weights), "--out", str(tmp_path / "new.onnx"), name, value.format(weights=weights)]
    assert run_cli(main, given) == 2
    assert sentence in capsys.readouterr().err
    assert weights.read_bytes() == (folder / "model.pt").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["w.onnx"]


def test_a_file_that_cannot_be_replaced_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.onnx").write_bytes(b"before")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes(tmp_path / "x.onnx", b"after")
    assert (tmp_path / "x.onnx").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
