"""Images sorted by class, from folders, zips or tars, decoded into memory: what stage 0 learns from.

Layouts: `<class>/<name>.<ext>` at any depth, `<class>/images/<name>.<ext>` (Tiny-ImageNet-200). Where a source has a
folder `train`, only what lies below it counts.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from data.errors import DataError
from data.images import IMAGE_SUFFIXES, MAX_PIXELS, read_image

MAX_BYTES = 4 * MAX_PIXELS
"""Largest file that is read from an archive."""


@dataclass(frozen=True)
class ClassImages:
    """Decoded images with their classes.

    names: class names, index = label; images: uint8 (3, h, w), shorter side at most what was asked for;
    labels: int64 (n,).
    """

    names: tuple[str, ...]
    images: list[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, chosen: Tensor) -> ClassImages:
        """The images whose positions are listed, classes unchanged."""
        return ClassImages(self.names, [self.images[i] for i in chosen.tolist()], self.labels[chosen])

    def split(self, every: int = 20) -> tuple[ClassImages, ClassImages]:
        """Training images and held-out ones; held out is every 20th (5 %) of each class, in order of name."""
        order = self.labels.argsort(stable=True)
        starts = torch.cumsum(torch.bincount(self.labels, minlength=len(self.names)), 0).roll(1)
        starts[0] = 0
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - starts[self.labels[order]]
        held = rank % every == every - 1
        return self.take((~held).nonzero()[:, 0]), self.take(held.nonzero()[:, 0])


def read_class_images(
    sources: Sequence[str | Path], side: int = 160, without: Collection[str] = frozenset()
) -> ClassImages:
    """Decode all images of folders, zips and tars; larger ones are shrunk to a shorter side of `side` pixels.

    A class that several sources name is one class. Images whose name, without ending, is in `without` are left out.
    Raises DataError for a source that is missing or has no images by class, and for a file that cannot be decoded.
    """
    found: list[tuple[str, str, Tensor]] = []
    for source in map(Path, sources):
        before = len(found)
        files = tqdm(open_files(source), desc=f"reading {source.name}", leave=False, disable=None, unit=" images")
        for name, file in files:
            if PurePosixPath(name).stem not in without:
                image = F.pil_to_tensor(read_image(source / name, file))
                found.append((class_of(name), name, shrink(image, side)))
        if len(found) == before:
            raise DataError(f"{source}: no images sorted by class; it needs files such as <class>/<name>.jpg")
    found.sort(key=lambda entry: entry[:2])
    names = tuple(sorted({name for name, *_ in found}))
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[name] for name, *_ in found], dtype=torch.int64)
    return ClassImages(names, [image for *_, image in found], labels)


def mini_names() -> frozenset[str]:
    """Names, without ending, of all images of the mini classification set: they belong to training and test there."""
    manifest = json.loads((Path(__file__).parent / "manifests" / "mini.json").read_text(encoding="utf-8"))
    return frozenset(PurePosixPath(name).stem for rows in manifest["cls"].values() for name in rows)


def shrink(image: Tensor, side: int) -> Tensor:
    """Reduce (3, h, w) to a shorter side of `side` pixels; smaller images stay as they are."""
    height, width = image.shape[-2:]
    factor = side / min(height, width)
    if factor >= 1:
        return image
    return F.resize(image, [max(1, round(height * factor)), max(1, round(width * factor))], antialias=True)


def class_of(name: str) -> str:
    """Class of an image by its path: its folder, or the one above a folder `images`."""
    folders = [p for p in PurePosixPath(name).parts[:-1] if p.lower() != "images"]
    return folders[-1] if folders else ""


def wanted(names: Sequence[str]) -> list[str]:
    """Names of the images that lie in a class folder, below `train` if there is one; sorted."""
    images = [n for n in names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES and "__MACOSX" not in n]
    train = [n for n in images if "train" in PurePosixPath(n).parts[:-2]]
    return sorted(n for n in (train or images) if class_of(n))


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
        raise DataError(f"{source}: {what}; give --pretrain.sources the folders or archives of images by class")


def check_size(source: Path, name: str, size: int) -> None:
    """Refuse a member that would not fit any image of allowed size."""
    if size > MAX_BYTES:
        raise DataError(f"{source}/{name}: {size} bytes, above the limit of {MAX_BYTES}; remove it from the archive")
