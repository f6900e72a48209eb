"""Every kind of pixel comes out in the colours it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import read_image
from data.pixels import array_to_rgb, to_rgb

ORANGE = (240, 120, 24)
GREY = 96


def orange() -> Image.Image:
    return Image.new("RGB", (6, 4), ORANGE)


@pytest.mark.parametrize(
    ("image", "expected", "off"),
    [
        (orange(), ORANGE, 0),
        (orange().convert("P", palette=Image.Palette.ADAPTIVE), ORANGE, 0),
        (orange().convert("RGBA"), ORANGE, 0),
        (Image.new("RGBA", (6, 4), (*ORANGE, 0)), ORANGE, 0),
        (Image.new("RGBA", (6, 4), (*ORANGE, 255)).convert("RGBa"), ORANGE, 0),
        (orange().convert("RGBX"), ORANGE, 0),
        (orange().convert("CMYK"), ORANGE, 0),
        (orange().convert("YCbCr"), ORANGE, 4),
        (orange().convert("HSV"), ORANGE, 4),
        (Image.new("LAB", (6, 4), (137, 128, 128)), (128, 128, 128), 8),
        (Image.new("L", (6, 4), GREY), (GREY,) * 3, 0),
        (Image.new("LA", (6, 4), (GREY, 10)), (GREY,) * 3, 0),
        (Image.new("LA", (6, 4), (GREY, 255)).convert("La"), (GREY,) * 3, 0),
        (Image.new("1", (6, 4), 1), (255,) * 3, 0),
        (Image.new("I", (6, 4), GREY), (GREY,) * 3, 0),
        (Image.new("I", (6, 4), GREY << 8), (GREY,) * 3, 0),
        (Image.new("I;16", (6, 4), GREY << 8), (GREY,) * 3, 0),
        (Image.new("F", (6, 4), GREY / 255), (GREY,) * 3, 0),
        (Image.new("F", (6, 4), float(GREY)), (GREY,) * 3, 0),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_shows_its_colour(image: Image.Image, expected: tuple[int, ...], off: int) -> None:
    found = to_rgb(image)
    assert (found.mode, found.size) == ("RGB", (6, 4))
    np.testing.assert_allclose(np.asarray(found).reshape(-1, 3).astype(int), [expected] * 24, atol=off)


def test_a_palette_with_a_transparent_entry_keeps_its_colours() -> None:
    image = orange().convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = 0
    assert to_rgb(image).getpixel((0, 0)) == ORANGE


def test_a_file_of_floats_is_not_black(tmp_path: Path) -> None:
    Image.new("F", (6, 4), GREY / 255).save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif").getpixel((5, 3)) == (GREY,) * 3


@pytest.mark.parametrize(
    ("dtype", "one"),
    [(np.uint8, 1), (np.int64, 1), (np.uint16, 256), (np.float32, 1 / 255), (np.float64, 1), (np.float16, 1)],
)
def test_arrays_of_every_type(dtype: type, one: float) -> None:
    values = (np.full((4, 6, 3), ORANGE) * one).astype(dtype)
    assert array_to_rgb(values).getpixel((5, 3)) == pytest.approx(ORANGE, abs=0)


def test_arrays_of_every_shape() -> None:
    grey = np.full((4, 6), GREY, np.uint8)
    for values in (grey, grey[..., None], np.stack([grey, grey * 0], -1), np.stack([grey] * 3 + [grey * 0], -1)):
        assert array_to_rgb(values).getpixel((5, 3)) == (GREY,) * 3
    assert array_to_rgb(grey > 0).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros((3, 40, 60)), r"shape \(3, 40, 60\)"),
        (np.zeros((0, 4, 3)), "shape"),
        (np.zeros(4), "shape"),
        (np.full((4, 4), -1), "pixels from -1 to -1"),
        (np.full((4, 4), 300), "pixels from 300"),
        (np.full((4, 4), np.nan), "pixels from nan"),
        (np.full((4, 4), "a"), "give numbers"),
    ],
)
def test_what_is_no_picture_is_refused(values: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        array_to_rgb(values)
