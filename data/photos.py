"""Photographs without labels, from folders, zips or tars, packed into one block of memory: what stage 0 looks at.

Where a source has a folder `train`, only what lies below it counts.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.errors import DataError
from data.images import IMAGE_SUFFIXES, MAX_PIXELS, read_image

MAX_BYTES = 4 * MAX_PIXELS
"""Largest file that is read from an archive."""
THREADS = 8
"""Images that are decoded at once, each of which may be large before it is shrunk."""
DECODED_AT_ONCE = 4 * THREADS
"""Files that are held in memory while their images are decoded."""


@dataclass(frozen=True)
class PackedImages:
    """Decoded images of any size, one after the other, so that crops of many are read in one operation.

    pixels: int32 (P,), each the bytes red, green, blue and one unused; sizes: int64 (n, 2), height and width;
    starts: int64 (n,), position of an image's first pixel; weights: float32 (n,), how often each is drawn, relatively.
    """

    pixels: Tensor
    sizes: Tensor
    starts: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> PackedImages:
        """The same with pixels on another device; the rest stays, since images and crops are drawn on the CPU."""
        return replace(self, pixels=self.pixels.to(device))


def read_photos(sources: Sequence[str | Path], side: int, without: Collection[str] = frozenset()) -> PackedImages:
    """Decode all images of folders, zips and tars; larger ones are shrunk to a shorter side of `side` pixels.

    A source that is named twice is read once and drawn twice as often. Images whose name, without ending, is in
    `without` are left out. Raises DataError for a source that is missing or has no images, and for a file that cannot
    be decoded.
    """
    packed: list[np.ndarray] = []
    weights: list[int] = []
    for source, count in Counter(map(Path, sources)).items():
        before = len(packed)
        files = tqdm(open_files(source), desc=f"reading {source.name}", leave=False, disable=None, unit=" images")
        wanted_files = ((source / name, file) for name, file in files if PurePosixPath(name).stem not in without)
        packed += decoded(wanted_files, side)
        weights += [count] * (len(packed) - before)
        if len(packed) == before:
            raise DataError(f"{source}: no images; give folders or archives of photographs")
    sizes = torch.tensor([image.shape[:2] for image in packed])
    ends = sizes.prod(1).cumsum(0)
    pixels = np.concatenate([image.reshape(-1) for image in packed]).view(np.int32)
    return PackedImages(torch.from_numpy(pixels), sizes, ends - sizes.prod(1), torch.tensor(weights).float())


def decoded(files: Iterator[tuple[Path, io.BytesIO | None]], side: int) -> Iterator[np.ndarray]:
    """RGBA pixels of images, decoded by several threads, in the order given."""

    def decode(file: tuple[Path, io.BytesIO | None]) -> np.ndarray:
        return np.asarray(shrink(read_image(*file), side).convert("RGBA"))

    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(files, DECODED_AT_ONCE)):
            yield from pool.map(decode, some)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Reduce an image to a shorter side of `side` pixels; smaller ones stay as they are."""
    factor = side / min(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(factor * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def mini_names() -> frozenset[str]:
    """Names, without ending, of all images of the mini classification set: they belong to training and test there."""
    manifest = json.loads((Path(__file__).parent / "manifests" / "mini.json").read_text(encoding="utf-8"))
    return frozenset(PurePosixPath(name).stem for rows in manifest["cls"].values() for name in rows)


def wanted(names: Sequence[str]) -> list[str]:
    """Names of the images, below `train` if there is such a folder; sorted."""
    images = [n for n in names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES and "__MACOSX" not in n]
    return sorted([n for n in images if "train" in PurePosixPath(n).parts[:-1]] or images)


def open_files(source: Path) -> Iterator[tuple[str, io.BytesIO | None]]:
    """Yield (path inside the source, content or None where the path can simply be opened).

    Raises DataError for what is no source, or a damaged one.
    """
    try:
        yield from files_of(source)
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError, EOFError, RuntimeError) as error:  # the last: a password
        raise DataError(f"{source}: a damaged archive ({error}); download it again") from error


def files_of(source: Path) -> Iterator[tuple[str, io.BytesIO | None]]:
    """The same, with whatever the libraries raise."""
    if source.is_dir():
        paths = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        yield from ((name, None) for name in wanted(paths))
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in wanted(archive.namelist()):
                check_size(source, name, archive.getinfo(name).file_size)
                yield name, io.BytesIO(archive.read(name))
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            names = set(wanted([m.name for m in archive.getmembers() if m.isfile()]))
        with tarfile.open(source, mode="r|*") as archive:  # in the archive's order: going back would unpack it anew
            for member in archive:
                if member.name in names and member.isfile():
                    check_size(source, member.name, member.size)
                    file = archive.extractfile(member)
                    yield member.name, io.BytesIO(file.read() if file else b"")
    else:
        what = "is neither a folder nor a zip or tar" if source.exists() else "is not there"
        raise DataError(f"{source}: {what}; give folders or archives of photographs")


def check_size(source: Path, name: str, size: int) -> None:
    """Refuse a member that would not fit any image of allowed size."""
    if size > MAX_BYTES:
        raise DataError(f"{source}/{name}: {size} bytes, above the limit of {MAX_BYTES}; remove it from the archive")
