"""Predictions for pictures of any size, drawn and written down."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from engine.evaluation.draw import LEGEND, colour_of, draw
from engine.evaluation.pictures import opened
from engine.evaluation.prediction import Box, Prediction, predict
from engine.export import export
from engine.predict import load_model, main, sources
from engine.storage import checkpoint
from engine.storage.checkpoint import model_content, save
from engine.storage.errors import UserError, run_cli
from models.boxes import to_xyxy
from models.deploy import LastLayer
from models.onehead import ModelConfig, OneHead
from models.postprocess import detections
from tests.data.server import Server
from tests.models.builders import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> OneHead:
    return tiny()


@pytest.fixture
def weights(model: OneHead, tmp_path: Path) -> str:
    save(tmp_path / "w.pt", model_content(model))
    return str(tmp_path / "w.pt")


def photo(width: int = 120, height: int = 80, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def found(mask: np.ndarray, boxes: list[Box] | None = None) -> Prediction:
    return Prediction({"tench": 0.9, "church": 0.1}, boxes or [], mask, ("cat", "dog"), ("background", "cat", "dog"))


def test_what_was_found_is_said_in_a_line() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:5], mask[5, 0] = 1, 2  # one pixel of dog is not worth a word
    boxes = [Box("dog", 0.9, (0, 0, 5, 5)), Box("cat", 0.8, (0, 0, 5, 5)), Box("dog", 0.7, (5, 5, 9, 9))]
    expected = "tench (90%); boxes: 2 dog, cat; regions: background 75%, cat 25%"
    assert found(mask, boxes).in_words() == expected
    assert found(mask).in_words() == "tench (90%); boxes: none; regions: background 75%, cat 25%"
    nothing_learnt = Prediction({}, [], np.zeros((4, 4), np.uint8), (), ())
    assert nothing_learnt.in_words() == ""
    assert set(found(mask).regions) == {"background", "cat", "dog"}
    assert list(found(mask).named_regions) == ["background", "cat"]


def test_a_picture_of_the_networks_size_is_read_as_evaluation_reads_it(model: OneHead) -> None:
    image = photo(96, 96)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        outputs = model(pixels)
    expected, result = detections(outputs)[0], predict(model, image, score=0.0)
    torch.testing.assert_close(torch.tensor([b.score for b in result.boxes]), expected["scores"])
    corners = torch.tensor([b.xyxy for b in result.boxes])
    torch.testing.assert_close(corners, to_xyxy(expected["boxes"]) * 96)
    assert result.label == model.classes["cls"][int(outputs["pred_class"].argmax())]


def test_weights_are_used_by_the_deployed_copy_which_sees_what_the_trained_network_sees(tmp_path: Path) -> None:
    trained = tiny(seed=1)  # with seed 0 two locations are equally sure, and rounding decides which comes first
    save(tmp_path / "w.pt", model_content(trained))
    deployed = load_model(tmp_path / "w.pt")
    assert isinstance(deployed, LastLayer)
    expected, result = (predict(model, photo(), score=0.0) for model in (trained, deployed))
    assert [b.score for b in result.boxes] == pytest.approx([b.score for b in expected.boxes], rel=1e-3)
    for box, other in zip(result.boxes, expected.boxes, strict=True):
        assert box.xyxy == pytest.approx(other.xyxy, abs=0.05)
    assert result.chances == pytest.approx(expected.chances, rel=1e-3)
    assert (result.mask != expected.mask).mean() < 1e-3


class Sees:
    """Says the same of every picture: one sure box in the upper left quarter, class 1 on the right half."""

    threshold = 0.3
    input_size, mean, classes = 32, torch.zeros(1), {"det": ("cat", "dog"), "seg": ("back", "cat"), "cls": ("a", "b")}

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert images.shape == (1, 3, 32, 32)
        masks = torch.zeros(1, 2, 4, 4)
        masks[:, 1] = torch.tensor([-9.0, -9.0, 9.0, 9.0])
        return {
            "pred_logits": torch.tensor([[[-9.0, 5.0], [-9.0, -9.0]]]),
            "pred_boxes": torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]]),
            "pred_masks": masks,
            "pred_class": torch.tensor([[0.0, 3.0]]),
        }


def test_boxes_come_in_pixels_of_the_picture_and_the_mask_at_its_size() -> None:
    result = predict(Sees(), photo(120, 80))  # type: ignore[arg-type]
    (box,) = result.boxes
    assert (box.name, box.xyxy) == ("dog", (0.0, 0.0, 60.0, 40.0))
    assert box.score == pytest.approx(0.9932, abs=1e-3)
    assert result.mask.shape == (80, 120)
    assert not result.mask[:, :50].any()
    assert result.mask[:, 70:].all()
    assert (result.label, result.probability) == ("b", pytest.approx(0.9526, abs=1e-3))


def test_the_score_limits_the_boxes(model: OneHead, monkeypatch: pytest.MonkeyPatch) -> None:
    every = predict(model, photo(), score=0.0).boxes
    middle = every[len(every) // 2].score
    assert all(b.score >= middle for b in predict(model, photo(), score=middle).boxes)
    assert predict(model, photo(), score=1.1).boxes == []
    monkeypatch.setattr(model, "threshold", middle)
    assert predict(model, photo()).boxes == predict(model, photo(), score=middle).boxes


def test_regions_are_shares_of_the_picture() -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[:2] = 2
    mask[0, 0] = 1
    assert found(mask).regions == {"background": 0.5, "dog": 0.45, "cat": 0.05}
    assert json.loads(json.dumps(found(mask).to_json()))["regions"]["dog"] == 0.45


def test_pictures_without_any_box_say_how_to_see_weaker_ones(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo().save(tmp_path / "a.png")
    save(tmp_path / "w.pt", {**checkpoint.load(weights), "threshold": 1.0})
    assert main(["--weights", weights, "--out", str(tmp_path / "out"), str(tmp_path / "a.png")]) == 0
    assert "no box has the score of 1 that these weights ask for; try --score 0.1" in capsys.readouterr().err


def test_files_folders_and_addresses(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    photo().save(folder / "a.png")
    photo(seed=1).save(folder / "b.jpg")
    (folder / "notes.txt").write_text("no image")
    content = io.BytesIO()
    photo(60, 90, seed=2).save(content, "PNG")
    with Server({"/pictures/a.png": content.getvalue()}) as server:
        url = f"{server.url}/pictures/a.png"
        assert main(["--weights", weights, "--out", str(out), "--score", "0", str(folder), url]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a-1.png", "a.png", "b.png", "predictions.json"]
    results = json.loads((out / "predictions.json").read_text())
    assert list(results) == [str(folder / "a.png"), str(folder / "b.jpg"), url]
    assert results[url]["boxes"][0].keys() == {"name", "score", "xyxy"}
    assert "3 " not in capsys.readouterr().err


def test_the_cameras_orientation_is_undone(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[274] = 6  # held upright: turn a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert opened(str(tmp_path / "turned.jpg")).size == (20, 40)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        list(sources([str(tmp_path)]))


def test_a_broken_image_ends_in_one_sentence(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "x.png").write_text("nothing")
    with pytest.raises(DataError, match=r"x\.png: cannot be decoded \(no image of a known format\); delete it"):
        opened(str(tmp_path / "x.png"))
    code = run_cli(main, ["--weights", weights, "--out", str(tmp_path / "o"), str(tmp_path / "x.png")])
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


# --- every picture is tried, nothing of the user's is replaced


def test_a_broken_picture_does_not_keep_the_others_from_being_tried(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    (folder / "frames.jpg").mkdir(parents=True)  # a folder, whatever its name says
    for name in ("a", "b", "c"):
        photo().save(folder / f"{name}.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:3000])  # cut off
    missing = str(tmp_path / "missing.png")
    assert run_cli(main, ["--weights", weights, "--out", str(out), "--score", "0", missing, str(folder)]) == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "c.png", "predictions.json"]
    assert list(json.loads((out / "predictions.json").read_text())) == [str(folder / f"{n}.png") for n in "ac"]
    first, line = capsys.readouterr().err.strip().splitlines()
    assert first == f"error: {missing}: cannot be read (No such file or directory); check the file"
    assert line.startswith(f"error: {folder / 'b.png'}: cannot be decoded (")


def test_a_name_that_no_file_can_have_is_a_picture_that_failed(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo().save(tmp_path / "a.png")
    long = str(tmp_path / ("x" * 300 + ".jpg"))
    assert run_cli(main, ["--weights", weights, "--out", str(tmp_path / "o"), long, str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"error: {long}: cannot be read (File name too long); check the file"
    )


def test_long_names_of_addresses_are_cut(tmp_path: Path) -> None:
    address = f"https://example.org/{'%D0%9F' * 45}.jpg"  # 270 characters
    found = list(sources([address, address, f"{'é' * 120}.jpg"], tmp_path))
    assert found[0] == (("%D0%9F" * 45)[:200], address)
    assert found[1] == (("%D0%9F" * 45)[:200] + "-1", address)
    assert found[2][0] == "é" * 100  # two bytes each


def test_what_was_found_is_kept_when_the_program_is_interrupted(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo().save(tmp_path / "a.png")
    photo().save(tmp_path / "b.png")

    def interrupted(source: str) -> Image.Image:
        if source.endswith("b.png"):
            raise KeyboardInterrupt
        return opened(source)

    monkeypatch.setattr("engine.predict.opened", interrupted)
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert run_cli(main, ["--weights", weights, "--out", str(tmp_path / "out"), *pictures]) == 130
    assert list(json.loads((tmp_path / "out" / "predictions.json").read_text())) == pictures[:1]


def test_originals_and_files_of_others_are_never_replaced(weights: str, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    photo(seed=1).save(tmp_path / "b.png")
    before = {name: (tmp_path / name).read_bytes() for name in ("a.png", "b.png")}
    arguments = ["--weights", weights, "--out", str(tmp_path), str(tmp_path / "a.png")]
    for _ in range(2):  # a second time the first result is replaced, nothing else
        assert run_cli(main, arguments) == 0
        assert sorted(p.name for p in tmp_path.glob("*.png")) == ["a-1.png", "a.png", "b.png"]
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


@pytest.mark.parametrize("out", [".", "sub/.."])
def test_the_folder_of_the_pictures_is_no_folder_for_results(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, out: str
) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    photo().save(photos / "a.png")
    monkeypatch.chdir(photos)
    assert run_cli(main, ["--weights", weights, "--out", out, str(photos)]) == 2
    assert f"error: --out {Path(out)}: is the folder of the pictures" in capsys.readouterr().err
    assert sorted(p.name for p in photos.iterdir()) == ["a.png", "sub"]


def test_a_file_is_no_folder_for_results(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo().save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert run_cli(main, ["--weights", weights, "--out", str(tmp_path / "a.png"), str(tmp_path / "a.png")]) == 2
    assert "a.png: is a file; name a folder for the results" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def test_an_index_of_another_program_is_not_replaced(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo().save(tmp_path / "a.png")
    (tmp_path / "predictions.json").write_text('{"theirs": 1}')
    assert run_cli(main, ["--weights", weights, "--out", str(tmp_path), str(tmp_path / "a.png")]) == 2
    assert "the predictions.json there is no earlier result" in capsys.readouterr().err
    assert (tmp_path / "predictions.json").read_text() == '{"theirs": 1}'


@pytest.mark.parametrize("score", ["1.01", "-0.1", "nan", "much"])
def test_a_score_outside_0_to_1_is_refused(score: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--weights", "w.pt", "--score", score, "a.png"])
    assert f"'{score}' is not a number from 0 to 1" in capsys.readouterr().err


# --- pictures of every kind, in Python


def test_a_path_an_image_and_an_array_give_the_same_prediction(model: OneHead, tmp_path: Path) -> None:
    image = photo()
    image.save(tmp_path / "a.png")
    expected = predict(model, image)
    for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), np.array(image), image.convert("RGBA")):
        result = predict(model, picture)
        assert result.to_json() == expected.to_json()
        assert np.array_equal(draw(picture, result), draw(image, expected))


def test_an_onnx_file_finds_what_its_checkpoint_finds(model: OneHead, weights: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(checkpoint.load_model(weights), tmp_path / "W.ONNX")  # the ending is known in capitals too
    expected, result = predict(model, photo(), 0.0), predict(load_model(tmp_path / "W.ONNX"), photo(), 0.0)
    assert result.label == expected.label
    assert result.probability == pytest.approx(expected.probability, abs=1e-3)
    assert [b.score for b in result.boxes] == pytest.approx([b.score for b in expected.boxes], abs=1e-3)
    assert (result.mask == expected.mask).mean() > 0.99


def test_more_than_255_classes_are_distinguished_and_drawn(model: OneHead) -> None:
    many = tuple(f"class {i}" for i in range(300))
    wide = OneHead(model.config, {"seg": many, "det": many, "cls": many}, 64).eval()
    result = predict(wide, photo(), score=0.0)
    result.mask[:] = 299
    assert result.regions == {"class 299": 1.0}
    every = replace(result, boxes=[Box(name, 0.5, (1.0, 1.0, 9.0, 9.0)) for name in many])
    assert draw(photo(), every).size == (480 + LEGEND, 320)
    assert colour_of(299) == colour_of(45) != colour_of(46)


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_a_network_of_one_task_says_what_it_knows(task: str) -> None:
    classes = {"seg": ("background", "cat"), "det": ("cat",), "cls": ("cat", "dog")}
    one = OneHead(ModelConfig(queries=20), {t: names if t == task else () for t, names in classes.items()}, 64).eval()
    result = predict(one, photo(), score=0.0)
    assert (result.label in ("cat", "dog")) == (result.probability > 0) == (task == "cls")
    assert bool(result.boxes) == (task == "det")
    assert bool(result.regions) == (task == "seg")
    assert result.mask.shape == (80, 120)
    assert draw(photo(), result).width == 480 + LEGEND
    assert json.loads(json.dumps(result.to_json()))["label"] == result.label


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_picture_of_63_megapixels_takes_less_than_a_gigabyte_and_a_half(tmp_path: Path) -> None:
    classes = {"seg": tuple(map(str, range(21))), "det": ("cat",), "cls": ("a", "b")}
    save(tmp_path / "w.pt", model_content(OneHead(ModelConfig(queries=10), classes, 320)))
    Image.linear_gradient("L").resize((9000, 7000)).convert("RGB").save(tmp_path / "large.jpg")
    code = (
        "import re, sys; from engine.predict import main; code = main(sys.argv[1:]); "
        # ru_maxrss would count what the process held that started this one.
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    arguments = ["--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / "o"), str(tmp_path / "large.jpg")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 1.5e9
