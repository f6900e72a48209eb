"""Photographs are found in every layout, whatever holds them, and packed without losing a pixel."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.photos import mini_names, read_photos

FILES = {"bird/b.png": (10, 20), "bird/a.png": (30, 12), "ant/c.jpg": (8, 8)}


def encoded(size: tuple[int, int], shade: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(buffer, "PNG" if kind == ".png" else "JPEG")
    return buffer.getvalue()


def contents(prefix: str = "") -> dict[str, bytes]:
    return {prefix + name: encoded(size, 40 * i, Path(name).suffix) for i, (name, size) in enumerate(FILES.items())}


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tgz"])
@pytest.mark.parametrize("prefix", ["", "some/where/", "set/train/"])
def test_folders_and_archives_give_the_same(tmp_path: Path, kind: str, prefix: str) -> None:
    files = contents(prefix)
    maker = {"folder": folder, "zip": zipped, "tgz": tarred}[kind]
    found = read_photos([maker(tmp_path / f"source.{kind}", files)], side=100)
    assert sorted(found.sizes.tolist()) == [[8, 8], [12, 30], [20, 10]]
    b = found.sizes.tolist().index([20, 10])  # bird/b.png, exact because PNG keeps its values
    pixels = found.pixels[found.starts[b] : found.starts[b] + 200].view(torch.uint8).view(200, 4)
    assert (pixels[:, :3] == torch.tensor([0, 0, 255])).all()
    assert len(found.pixels) == 64 + 360 + 200


def test_images_need_no_class(tmp_path: Path) -> None:
    assert len(read_photos([folder(tmp_path, {"loose.png": encoded((4, 4), 1, ".png")})], side=100)) == 1


def test_where_there_is_a_training_folder_the_rest_is_left_alone(tmp_path: Path) -> None:
    files = contents("tiny/train/") | {"tiny/val/images/v.png": encoded((9, 9), 1, ".png")}
    files |= {"tiny/train/cow/images/d.png": encoded((9, 9), 1, ".png"), "tiny/words.txt": b"ant\n"}
    assert len(read_photos([zipped(tmp_path / "tiny.zip", files)], side=100)) == 4


def test_sources_add_up_and_large_images_are_shrunk(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", {"bird/x.png": encoded((400, 200), 3, ".png")})
    second = folder(tmp_path / "second", contents())
    found = read_photos([first, second], side=16)
    assert sorted(found.sizes.tolist()) == [[8, 8], [12, 30], [16, 32], [20, 10]]


def test_a_source_named_twice_is_read_once_and_seen_twice_as_often(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", {"x.png": encoded((8, 8), 3, ".png")})
    second = folder(tmp_path / "second", {"y.png": encoded((4, 4), 3, ".png")})
    found = read_photos([first, second, first], side=16)
    assert found.sizes.tolist() == [[8, 8], [4, 4]]
    assert found.weights.tolist() == [2, 1]


def test_images_of_the_mini_set_can_be_left_out(tmp_path: Path) -> None:
    name = sorted(mini_names())[0]
    files = contents() | {f"ant/{name}.JPEG": encoded((9, 9), 1, ".jpg")}
    assert len(mini_names()) >= 300
    assert len(read_photos([folder(tmp_path, files)], side=100)) == 4
    assert len(read_photos([tmp_path], side=100, without=mini_names())) == 3


@pytest.mark.parametrize(
    ("files", "sentence"),
    [({"text.txt": b""}, "no images"), ({"ant/broken.png": b"no image"}, "ant/broken.png")],
)
def test_a_source_of_no_use_is_named(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    for source in (folder(tmp_path / "f", files), zipped(tmp_path / "z.zip", files)):
        with pytest.raises(DataError, match=sentence) as caught:
            read_photos([source], side=100)
        assert str(source) in str(caught.value)


def test_a_missing_source_and_a_file_that_is_no_archive_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(DataError, match="is not there"):
        read_photos([tmp_path / "none"], side=100)
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        read_photos([tmp_path / "text.txt"], side=100)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        zipped(path, {"ant/a.png": bytes(5000)})
        content = bytearray(path.read_bytes())
        content[60:70] = b"damaged..."  # inside the packed image: the directory at the end is in order
        path.write_bytes(bytes(content))
    else:
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo("ant/a.png")
            entry.size = 50_000
            archive.addfile(entry, io.BytesIO(os.urandom(50_000)))
        path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(DataError, match=r"damaged archive .* download it again") as caught:
        read_photos([path], side=100)
    assert str(path) in str(caught.value)


def test_an_archive_of_several_disks_is_a_damaged_one(tmp_path: Path) -> None:
    # An end record that points to one of 64 bits, which states that it is on another disk.
    locator = struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + bytes(60) + locator + end)
    with pytest.raises(DataError, match="damaged archive"):
        read_photos([tmp_path / "a.zip"], side=100)
