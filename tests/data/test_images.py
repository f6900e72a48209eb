from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.images import image_orientation, image_size, looks_like_mask, read_image, read_mask
from tests.data.builders import SIZE, draw_image, draw_mask


def pixel(path: Path) -> tuple[int, ...]:
    """Read an image and return its first pixel."""
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == SIZE
    return image.getpixel((0, 0))


def plain(path: Path, mode: str, colour: object) -> Path:
    Image.new(mode, SIZE, colour).save(path)
    return path


def bomb(path: Path, width: int, height: int) -> Path:
    """Write the head of a PNG that claims a size, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")))
    return path


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    assert pixel(plain(tmp_path / "rgb.png", "RGB", (1, 2, 3))) == (1, 2, 3)
    assert pixel(plain(tmp_path / "grey.png", "L", 77)) == (77, 77, 77)
    assert pixel(plain(tmp_path / "bit.png", "1", 1)) == (255, 255, 255)
    assert pixel(plain(tmp_path / "alpha.png", "RGBA", (1, 2, 3, 0))) == (1, 2, 3)
    assert pixel(plain(tmp_path / "grey_alpha.png", "LA", (9, 100))) == (9, 9, 9)
    # 0x4D00 of 0xFFFF: the upper byte is 77
    assert pixel(plain(tmp_path / "sixteen.png", "I;16", 77 << 8)) == (77, 77, 77)
    assert pixel(plain(tmp_path / "sixteen.tif", "I", 77 << 8)) == (77, 77, 77)
    assert pixel(plain(tmp_path / "cmyk.tif", "CMYK", (255, 255, 255, 255))) == (0, 0, 0)


@pytest.mark.filterwarnings("error")
def test_palette_image_is_read_by_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=1)
    assert pixel(tmp_path / "a.png") == (10, 20, 30)
    assert pixel(tmp_path / "b.png") == (10, 20, 30)
    image.save(tmp_path / "c.png", transparency=b"\x00\x80")
    assert pixel(tmp_path / "c.png") == (10, 20, 30)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", SIZE, colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert pixel(tmp_path / "a.gif") == (255, 0, 0)


def test_exif_rotation_is_reported_and_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == SIZE
    assert image_orientation(tmp_path / "a.jpg") == 6
    assert image_orientation(draw_image(tmp_path / "b.jpg")) == 1


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "bmp"])
def test_truncated_image_is_named(tmp_path: Path, ending: str) -> None:
    path = draw_image(tmp_path / f"cut.{ending}", size=(200, 150))
    whole = path.read_bytes()
    for keep in (0, 3, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=rf"cut.{ending}: cannot be decoded .* download it again"):
            read_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jpg: no such image"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (60_000, 60_000)])
@pytest.mark.filterwarnings("error")
def test_huge_image_is_refused_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    path = bomb(tmp_path / "bomb.png", width, height)
    for read in (read_image, image_size, lambda path: read_mask(path, 21)):
        with pytest.raises(DataError, match=r"bomb.png: .*limit of 64 megapixels"):
            read(path)


def test_masks_are_distinguished_from_photographs(tmp_path: Path) -> None:
    assert looks_like_mask(draw_mask(tmp_path / "mask.png"))
    assert not looks_like_mask(draw_image(tmp_path / "noise.png"))
    assert not looks_like_mask(draw_image(tmp_path / "grey.png", mode="L"))
    (tmp_path / "broken.png").write_bytes(np.zeros(9).tobytes())
    assert not looks_like_mask(tmp_path / "broken.png")
