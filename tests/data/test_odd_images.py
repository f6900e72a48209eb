"""Images and annotations of unusual kind or size: read as documented, or refused in one sentence, in bounded memory."""

from __future__ import annotations

import io
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data.dataset import TaskDataset
from data.errors import DataError
from data.images import IMAGE_SUFFIXES, decoders, image_orientation, read_image, read_mask
from data.layouts.coco import read_boxes
from data.layouts.tree import Found
from data.transforms import Augment
from data.types import MAX_BOXES
from tests.data.builders import annotation, coco, draw_image


def found(folder: Path, document: dict[str, object]) -> Found:
    return Found("det", "val", "", folder, tuple(sorted(folder.glob("*.jpg"))), folder / "a.json", document)


def test_a_picture_of_30000_pixels_is_read_or_refused_by_its_area(tmp_path: Path) -> None:
    Image.new("L", (30_000, 2_000), 7).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png").size == (30_000, 2_000)
    tracemalloc.start()
    assert int(read_mask(tmp_path / "wide.png", 21).max()) == 7
    assert tracemalloc.get_traced_memory()[1] < 6 * 60_000_000  # bytes a pixel
    tracemalloc.stop()
    Image.new("1", (30_000, 2_500)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"huge.png: 30000 x 2500 pixels, above the limit of 64 megapixels"):
        read_image(tmp_path / "huge.png")


def test_cmyk_jpeg_and_alpha_of_webp_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15
    Image.new("RGBA", (8, 8), (10, 200, 30, 255)).save(tmp_path / "a.webp", lossless=True)
    assert read_image(tmp_path / "a.webp").getpixel((4, 4)) == (10, 200, 30)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, kind: str) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second], lossless=True)
    assert read_image(tmp_path / f"a.{kind}").getpixel((4, 4)) == (250, 0, 0)


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_means_nothing_is_upright(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[274] = value
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert image_orientation(tmp_path / "a.jpg") == 1


def test_files_that_other_programs_would_have_to_read_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")  # Pillow would start Ghostscript
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"a.jpg: cannot be decoded"):
        read_image(tmp_path / "a.jpg")


def test_a_hundred_thousand_boxes_on_one_image(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.jpg", (640, 480))
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 400, (100_000, 2)), rng.uniform(3, 60, (100_000, 2))], axis=1)
    document = coco(["a.jpg"], [annotation(1, 1, box) for box in boxes.tolist()], {1: "cat"}, (640, 480))
    began = time.process_time()
    task_set = read_boxes(found(tmp_path, document))
    assert task_set.records[0].boxes.shape == (100_000, 4)
    assert any("more than 1000 boxes" in note for note in task_set.notes)
    sample = TaskDataset(task_set, 64, None)[0]
    assert sample.boxes is not None
    assert len(sample.boxes) == MAX_BOXES
    largest = np.sort(boxes[:, 2] * boxes[:, 3])[-MAX_BOXES]
    kept = sample.boxes[:, 2] * 640 * sample.boxes[:, 3] * 480
    assert float(kept.min()) == pytest.approx(largest, rel=1e-3)
    mosaic = TaskDataset(task_set, 64, Augment(mosaic=1.0))[0]
    assert mosaic.boxes is not None
    assert len(mosaic.boxes) <= 4 * MAX_BOXES
    assert time.process_time() - began < 60


def test_few_boxes_all_stay_in_their_order(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.jpg")
    boxes = [[float(i), 1.0, 4.0 + i % 3, 5.0] for i in range(20)]
    document = coco(["a.jpg"], [annotation(1, 1, box) for box in boxes], {1: "cat"})
    sample = TaskDataset(read_boxes(found(tmp_path, document)), 32, None)[0]
    assert sample.boxes is not None
    assert torch.allclose(sample.boxes[:, 2] * 32, torch.tensor([box[2] for box in boxes]))


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
NEAR = st.floats(-50, 80) | ODD


@given(
    boxes=st.lists(
        st.tuples(st.lists(NEAR, min_size=4, max_size=4), NEAR, st.sampled_from([1, 2, "1", None])), max_size=6
    ),
    size=st.tuples(NEAR, NEAR),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_the_numbers_boxes_lie_inside_their_image(
    boxes: list[tuple[list[object], object, object]],
    size: tuple[object, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "odd"
    if not folder.exists():
        draw_image(folder / "a.jpg")
    rows = [annotation(1, category, box, area=area) for box, area, category in boxes]
    document = coco(["a.jpg"], rows, {1: "cat", 2: "dog"}, size)  # type: ignore[arg-type]
    try:
        task_set = read_boxes(found(folder, document))
    except DataError:
        return  # not one box is usable
    (record,) = task_set.records
    assert torch.isfinite(record.boxes).all()
    assert torch.isfinite(record.area).all()
    assert (record.area > 0).all()
    assert (record.boxes >= 0).all()
    assert (record.boxes <= torch.tensor([32.0, 24.0, 32.0, 24.0])).all()


@given(values=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_mask_comes_back_as_it_was_saved_or_is_refused(
    values: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.png"
    Image.fromarray(values).save(path)
    allowed = ((values < 21) | (values == 255)).all()
    if allowed:
        assert (read_mask(path, 21) == values).all()
    else:
        first = int(values[(values >= 21) & (values != 255)].min())
        with pytest.raises(DataError, match=f"values.png: mask value {first}, but there are 21 classes"):
            read_mask(path, 21)


def test_a_png_whose_text_unpacks_to_much_is_refused_in_little_memory(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * 30_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a.png: cannot be decoded"):
        read_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_image_in_an_archive_cannot_lead_anywhere(tmp_path: Path) -> None:
    from data.photos import read_photos

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("../../dog/evil.png", "/tmp/cat/evil.png", "dog/good.png"):
            archive.writestr(name, buffer.getvalue())
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(read_photos([tmp_path / "a.zip"], side=100)) == 3
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("ending", ["jfif", "jpe", "JPG", "avif"])
def test_other_endings_of_pictures(tmp_path: Path, ending: str) -> None:
    if ending == "avif" and "AVIF" not in decoders():
        pytest.skip("this Pillow reads no AVIF")
    Image.new("RGB", (16, 16), (10, 200, 30)).save(tmp_path / f"a.{ending}", "AVIF" if ending == "avif" else "JPEG")
    assert f".{ending.lower()}" in IMAGE_SUFFIXES
    red, green, blue = read_image(tmp_path / f"a.{ending}").getpixel((4, 4))
    assert abs(red - 10) + abs(green - 200) + abs(blue - 30) < 30


def test_heic_names_what_to_install(tmp_path: Path) -> None:
    if "HEIF" in decoders():
        pytest.skip("pillow-heif is installed")
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"a.HEIC: HEIF needs pillow-heif \(`pip install pillow-heif`\)"):
        read_image(tmp_path / "a.HEIC")
