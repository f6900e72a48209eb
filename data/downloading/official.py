"""The official sources: COCO 2017 image by image, the VOC 2012 tar as a stream, the Imagenette v2 archive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.downloading.fetch import (
    CHUNK,
    BeyondEnd,
    NotFound,
    RemoteStream,
    Web,
    bar,
    download_file,
    fetch_bytes,
    sha256,
    write_atomic,
)
from data.errors import DataError

COCO_URL = "http://images.cocodataset.org"  # its https certificate names another host
VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
IMAGENETTE_MD5 = "e793b78cc4c9e9a4ccc0c1155377a412"
"""As in torchvision.datasets.Imagenette."""
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
"""As in avalanche.benchmarks.datasets.TinyImagenet."""

IMAGE_LIMIT = 20 << 20
"""Bytes; the largest image of the three sources is far below."""
ARCHIVE_LIMIT = 1 << 30
UNPACKED_LIMIT = 4 << 30
_THREADS = 8


@dataclass(frozen=True)
class Item:
    """One file of a set: where it goes, its SHA-256 (None: not yet known), its names at the source."""

    path: Path
    sha256: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """Where files go. `scratch` holds half-done work; `allow_changed` takes any image that decodes."""

    root: Path
    web: Web
    allow_changed: bool = False

    @property
    def scratch(self) -> Path:
        """Folder on the same disk, so that a finished file can be moved into place at once."""
        return self.root / ".download"

    def problem(self, item: Item, content: bytes) -> str | None:
        """What is wrong with these bytes as `item`, None if nothing."""
        if item.sha256 is not None and not self.allow_changed:
            got = sha256(content)
            return None if got == item.sha256 else f"expected sha256 {item.sha256}, got {got}"
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"expected an image, got {len(content)} bytes that do not decode ({error})"
        return None

    def has(self, item: Item) -> bool:
        """Whether the file is on disk and intact."""
        path = self.root / item.path
        return path.is_file() and self.problem(item, path.read_bytes()) is None

    def save(self, item: Item, content: bytes) -> str | None:
        """Check, then write; returns the problem instead of writing when there is one."""
        problem = self.problem(item, content)
        if problem is None:
            write_atomic(self.root / item.path, content, self.scratch)
        return problem


def _corrupt(item: Item, problem: str, url: str) -> DataError:
    return DataError(
        f"{item.path}: {problem}, twice, from {url}; run again later, or, if the source itself has changed, "
        "add --allow-changed to take any image that decodes"
    )


def fetch_coco(url: str, items: Sequence[Item], store: Store) -> None:
    """Images one by one, several at a time. Raises DataError at the first that cannot be had."""
    with ThreadPoolExecutor(_THREADS) as pool, bar(len(items), "COCO images", "file") as progress:
        futures = [pool.submit(_fetch_one, url.rstrip("/"), item, store) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
                progress.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fetch_one(base: str, item: Item, store: Store) -> None:
    problem, url = "", ""
    for _ in range(2):
        content, url = _first_found(base, item, store)
        problem = store.save(item, content) or ""
        if not problem:
            return
    raise _corrupt(item, problem, url)


def _first_found(base: str, item: Item, store: Store) -> tuple[bytes, str]:
    for key in item.keys[:-1]:
        try:
            return fetch_bytes(f"{base}/{key}", store.web, IMAGE_LIMIT), f"{base}/{key}"
        except NotFound:
            continue
    url = f"{base}/{item.keys[-1]}"
    return fetch_bytes(url, store.web, IMAGE_LIMIT), url


def safe_members(tar: tarfile.TarFile, url: str) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive. Raises DataError on a path leading out, a link, a device, a bomb."""
    unpacked = 0
    for member in tar:
        parts = member.name.split("/")
        if member.name.startswith("/") or "\\" in member.name or ".." in parts:
            raise DataError(f"{url}: member {member.name!r} leads out of its folder; use another source")
        if not (member.isfile() or member.isdir()):
            raise DataError(f"{url}: member {member.name!r} is a link or a device; use another source")
        unpacked += member.size
        if unpacked > UNPACKED_LIMIT:
            raise DataError(f"{url}: unpacks to more than {UNPACKED_LIMIT} bytes; use another source")
        if member.isfile():
            yield member


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, url: str) -> bytes:
    """The content of a member, at most `IMAGE_LIMIT` bytes, else DataError."""
    file = tar.extractfile(member)
    if member.size > IMAGE_LIMIT or file is None:
        raise DataError(f"{url}: member {member.name!r} has {member.size} bytes, limit {IMAGE_LIMIT}")
    return file.read()


class ArchivePass:
    """Readings of a tar that save wanted members as they come; `left`: name in the tar -> item to come."""

    def __init__(self, url: str, items: Sequence[Item], store: Store) -> None:
        self.url = url
        self.store = store
        self.left = {key: item for item in items for key in item.keys}
        self.bad: dict[Path, tuple[str, int]] = {}
        """Items that came with wrong bytes: what was wrong, and where their header stood."""

    def items(self) -> list[Item]:
        """What is not yet saved."""
        return list({item.path: item for item in self.left.values()}.values())

    def run(self, tar: tarfile.TarFile, base: int = 0) -> Iterator[int]:
        """Yields, after each file saved, the offset of the next header. `base`: where the stream began."""
        self.bad = {}
        depth = max(len(key.split("/")) for key in self.left)
        for member in safe_members(tar, self.url):
            item = self.left.get("/".join(member.name.split("/")[-depth:]))
            if item is None:
                continue
            problem = self.store.save(item, read_member(tar, member, self.url))
            if problem:
                self.bad[item.path] = (problem, base + member.offset)
            else:
                self.left = {key: other for key, other in self.left.items() if other.path != item.path}
                yield base + tar.offset
            if len(self.items()) == len(self.bad):
                return

    def error(self) -> DataError:
        """Why the items in `left` could not be had."""
        for item in self.items():
            if item.path in self.bad:
                return _corrupt(item, self.bad[item.path][0], self.url)
        names = sorted(key for key in self.left)
        return DataError(
            f"{self.url}: {len(self.items())} wanted files are not in it, first {names[0]}; check the address"
        )


def voc_mark(store: Store, url: str, offset: int, left: Sequence[str]) -> None:
    """Note that all of `left` lies beyond `offset` bytes of the tar, for a later process."""
    note = {"url": url, "offset": offset, "left": sorted(left)}
    write_atomic(store.scratch / "voc.json", json.dumps(note).encode(), store.scratch)


def _voc_start(store: Store, url: str, wanted: set[str]) -> int:
    try:
        note = json.loads((store.scratch / "voc.json").read_bytes())
        return int(note["offset"]) if note["url"] == url and wanted <= set(note["left"]) else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def fetch_voc(url: str, items: Sequence[Item], store: Store) -> None:
    """Stream the tar, which is never stored, and keep the wanted files; stops as soon as it has them all.

    A cut connection goes on where it broke; a new process goes on after the last file saved. Files that came
    corrupt are read once more. Raises DataError when that does not help.
    """
    work = ArchivePass(url, items, store)
    start = _voc_start(store, url, set(work.left))
    failure: DataError | None = None
    for _ in range(2 if start == 0 else 3):  # a stale note must not cost the second chance
        try:
            failure = None
            _stream_pass(work, start)
        except (tarfile.TarError, BeyondEnd) as error:
            failure = DataError(f"{url}: not a readable tar ({error}); check the address")
        if not work.left:
            (store.scratch / "voc.json").unlink(missing_ok=True)
            return
        if start == 0 and not work.bad:
            break
        only_bad = len(work.bad) == len(work.items())
        start = min(offset for _, offset in work.bad.values()) if only_bad else 0
    raise failure or work.error()


def _stream_pass(work: ArchivePass, start: int) -> None:
    with (
        RemoteStream(work.url, work.store.web, start) as stream,
        bar(None, "VOC 2012", "B", start) as stream.progress,
        tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18) as tar,
    ):
        for offset in work.run(tar, start):
            voc_mark(work.store, work.url, offset, list(work.left))


def fetch_archive(url: str, store: Store) -> Path:
    """The archive as a file in the scratch folder, continued if a part is there."""
    path = store.scratch / Path(url).name
    if not path.is_file():
        download_file(url, path, store.web, ARCHIVE_LIMIT)
    return path


def fetch_checked(url: str, md5: str, folder: Path, store: Store) -> None:
    """Bring an archive into `folder` as it is; one that is there and intact stays, a damaged one is fetched anew.

    Raises DataError when the sum differs twice; `store.allow_changed` takes it all the same.
    """
    target = folder / Path(url).name
    if target.is_file() and md5_of(target) == md5:
        print(f"{target}: in place and intact", flush=True)
        return
    for _ in range(2):
        path = fetch_archive(url, store)
        got = md5_of(path)
        if got == md5 or store.allow_changed:
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            print(f"{target}: fetched", flush=True)
            return
        path.unlink()
    raise DataError(
        f"{url}: expected md5 {md5}, got {got}, twice; run again later, or, if the source itself has changed, "
        "add --allow-changed"
    )


def md5_of(path: Path) -> str:
    """Hexadecimal MD5 of a file, the sum that these archives are published with."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def fetch_imagenette(url: str, items: Sequence[Item], store: Store) -> None:
    """Download the archive (about 99 MB), keep the wanted images, delete it.

    An archive that is damaged or holds a corrupt image is downloaded once more. Raises DataError when that
    does not help.
    """
    work = ArchivePass(url, items, store)
    for _ in range(2):
        path = fetch_archive(url, store)
        failure: DataError | None = None
        try:
            with tarfile.open(path, mode="r|gz") as tar:
                for _ in work.run(tar):
                    pass
        except DataError:
            path.unlink()
            raise
        except (tarfile.TarError, zlib.error, EOFError) as error:
            failure = DataError(f"{url}: not a readable .tgz ({error}), twice; check the address")
        path.unlink()
        if not work.left:
            return
    raise failure or work.error()
