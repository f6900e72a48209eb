"""Predictions for pictures of any size, drawn and written down."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from engine.evaluation.draw import LEGEND, colour_of, draw
from engine.evaluation.prediction import Box, Prediction, predict
from engine.predict import main, opened, sources
from engine.storage.checkpoint import model_content, save
from engine.storage.errors import UserError, run_cli
from models.boxes import to_xyxy
from models.onehead import OneHead
from models.postprocess import detections
from tests.data.server import Server
from tests.models.builders import tiny


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
    return Prediction("tench", 0.9, boxes or [], mask, ("cat", "dog"), ("background", "cat", "dog"))


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


class Sees:
    """Says the same of every picture: one sure box in the upper left quarter, class 1 on the right half."""

    input_size, mean, classes = 32, torch.zeros(1), {"det": ("cat", "dog"), "seg": ("back", "cat"), "cls": ("a", "b")}

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert images.shape == (1, 3, 32, 32)
        masks = torch.zeros(1, 2, 4, 4)
        masks[:, 1] = torch.tensor([-9.0, -9.0, 9.0, 9.0])
        return {
            "pred_conf": torch.tensor([[5.0, -9.0]]),
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


def test_the_score_limits_the_boxes(model: OneHead) -> None:
    every = predict(model, photo(), score=0.0).boxes
    middle = every[len(every) // 2].score
    assert all(b.score >= middle for b in predict(model, photo(), score=middle).boxes)
    assert predict(model, photo(), score=1.1).boxes == []


def test_regions_are_shares_of_the_picture() -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[:2] = 2
    mask[0, 0] = 1
    assert found(mask).regions == {"background": 0.5, "dog": 0.45, "cat": 0.05}
    assert json.loads(json.dumps(found(mask).to_json()))["regions"]["dog"] == 0.45


def test_what_was_found_is_drawn_and_the_picture_left_alone() -> None:
    image = Image.new("RGB", (480, 240), (100, 100, 100))
    mask = np.zeros((240, 480), np.uint8)
    mask[:, 240:] = 2
    picture = draw(image, found(mask, [Box("dog", 0.8, (40.0, 60.0, 140.0, 160.0))]))
    assert picture.size == (480 + LEGEND, 240)
    assert picture.getpixel((40, 120)) == colour_of(2)  # the box's left edge
    assert picture.getpixel((100, 120)) == (100, 100, 100)  # inside: background
    tint = picture.getpixel((400, 120))
    assert tint == pytest.approx([0.55 * 100 + 0.45 * c for c in colour_of(2)], abs=1)
    legend = np.asarray(picture)[:, 480:]
    assert (legend == colour_of(2)).all(-1).any()
    assert image.getpixel((400, 120)) == (100, 100, 100)


def test_small_pictures_are_enlarged_and_boxes_at_the_edge_keep_their_names() -> None:
    image = Image.new("RGB", (48, 96), "white")
    picture = draw(image, found(np.zeros((96, 48), np.uint8), [Box("cat", 0.5, (0.0, 0.0, 48.0, 96.0))]))
    assert picture.size == (240 + LEGEND, 480)


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


@pytest.mark.parametrize(
    ("name", "says"), [("missing.png", "no such file or folder"), ("empty", "holds no image")], ids=["missing", "empty"]
)
def test_what_is_no_image_is_named(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        list(sources([str(tmp_path / name)]))


def test_a_broken_image_ends_in_one_sentence(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "x.png").write_text("nothing")
    with pytest.raises(DataError, match=r"x\.png: cannot be decoded"):
        opened(str(tmp_path / "x.png"))
    code = run_cli(main, ["--weights", weights, "--out", str(tmp_path / "o"), str(tmp_path / "x.png")])
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
