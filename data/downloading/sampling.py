"""Draw other samples from the official sources: disjoint splits, test from official validation only."""

from __future__ import annotations

import json
import random
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.classes import IMAGENETTE, VOC_CLASSES, name_index
from data.downloading.fetch import RemoteStream, bar, download_file
from data.downloading.official import ARCHIVE_LIMIT, Store, fetch_archive, read_member, safe_members, voc_mark
from data.errors import DataError

if TYPE_CHECKING:
    from data.types import Task

COCO_CLASSES = ("person", "car", "bird", "cat", "dog", "bottle", "cup", "chair", "dining table", "book")
_ANNOTATIONS = "annotations/annotations_trainval2017.zip"
_JSON_LIMIT = 1 << 30
_ORIGIN = {"train": "train", "val": "train", "test": "val"}
"""Official part from which each of our splits is drawn."""

Candidates = Mapping[str, Mapping[str, Iterable[str]]]
"""Official part -> class -> names of the images that show it."""


@dataclass(frozen=True)
class Request:
    """What to draw: classes by task (none: those of the mini sets), images per split, seed."""

    classes: Mapping[Task, Sequence[str]]
    counts: Mapping[str, int]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """As stored beside the sample."""
        classes = {task: list(names) for task, names in self.classes.items()}
        return {"classes": classes, "counts": dict(self.counts), "seed": self.seed}


def draw(task: Task, request: Request, url: str, store: Store, taken: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Section(s) of a name list for one task; images of `taken` (split -> names) are left out.

    Raises DataError on an unknown class, too few images, or a source that is not as expected.
    """
    used = {name for names in taken.values() for name in names}
    drawers = {"det": _draw_coco, "seg": _draw_voc, "cls": _draw_imagenette}
    return drawers[task](request, url, store, used)


def check_classes(request: Request) -> None:
    """Raise DataError on names that are no VOC or Imagenette class; those of COCO stand in its own files."""
    _named("seg", request, VOC_CLASSES[1:], ())
    _named("cls", request, tuple(IMAGENETTE.values()), ())


def choose(task: Task, request: Request, candidates: Candidates, used: set[str]) -> dict[str, dict[str, str]]:
    """Split -> {name: official part}; classes take turns, so that each is there; fixed by the seed alone."""
    used = set(used)
    chosen: dict[str, dict[str, str]] = {}
    for split, count in request.counts.items():
        if count <= 0:
            continue
        rng = random.Random(f"{request.seed} {task} {split}")
        queues = [sorted(set(names) - used) for names in candidates[_ORIGIN[split]].values()]
        for queue in queues:
            rng.shuffle(queue)
        names: set[str] = set()
        while len(names) < count and any(queues):
            for queue in queues:
                while queue and queue[-1] in names:
                    queue.pop()
                if queue and len(names) < count:
                    names.add(queue.pop())
        if len(names) < count:
            raise DataError(
                f"--{split} {count}: only {len(names)} unused images of the classes for {task}; ask for fewer"
            )
        used |= names
        chosen[split] = dict.fromkeys(sorted(names), _ORIGIN[split])
    return chosen


def _named(task: Task, request: Request, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """The classes asked for, in the spelling of `known`."""
    found = []
    for name in request.classes.get(task, default):
        position = name_index(name, known)
        if position is None:
            raise DataError(f"--classes {task}: {name!r} is unknown; choose from {', '.join(known)}")
        found.append(known[position])
    return found


def _draw_coco(request: Request, url: str, store: Store, used: set[str]) -> dict[str, Any]:
    parts = {"train": "train2017", "val": "val2017"}
    needed = {_ORIGIN[split] for split, count in request.counts.items() if count > 0}
    truths = _coco_json(f"{url.rstrip('/')}/{_ANNOTATIONS}", store, {p: parts[p] for p in sorted(needed)})
    if not truths:
        return {"categories": [], "det": {}}
    known = next(iter(truths.values()))["categories"]
    names = _named("det", request, [c["name"] for c in known], COCO_CLASSES)
    categories = [c for c in known if c["name"] in names]
    by_id = {c["id"]: c["name"] for c in categories}
    rows: dict[str, dict[str, Any]] = {}
    shows: dict[str, dict[str, list[str]]] = {part: {name: [] for name in by_id.values()} for part in parts}
    for part, truth in truths.items():
        files = {i["id"]: i for i in truth["images"]}
        for a in truth["annotations"]:
            if a["category_id"] not in by_id or min(a["bbox"][2:]) <= 0:
                continue
            image = files[a["image_id"]]
            new = {"sha256": None, "from": part, "size": [image["width"], image["height"]], "boxes": []}
            row = rows.setdefault(image["file_name"], new)
            row["boxes"].append([a["category_id"], *a["bbox"], round(a["area"], 2), a["iscrowd"]])
            if not a["iscrowd"]:
                shows[part][by_id[a["category_id"]]].append(image["file_name"])
    chosen = choose("det", request, shows, used)
    det = {split: {name: rows[name] for name in names} for split, names in chosen.items()}
    return {"categories": categories, "det": det}


def _coco_json(url: str, store: Store, parts: Mapping[str, str]) -> dict[str, Any]:
    """The official detection annotations of each part; the zip (about 241 MB) is kept for the next draw."""
    path = store.scratch / "annotations_trainval2017.zip"
    for last in (False, True):
        if not path.is_file():
            download_file(url, path, store.web, ARCHIVE_LIMIT)
        try:
            with zipfile.ZipFile(path) as archive:
                return {part: json.loads(_member(archive, f"annotations/instances_{folder}.json", url))
                        for part, folder in parts.items()}  # fmt: skip
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
            path.unlink()
            if last or isinstance(error, DataError):
                raise DataError(f"{url}: not the COCO 2017 annotations ({error}); check --coco-url") from error
    raise AssertionError("not reached")


def _member(archive: zipfile.ZipFile, name: str, url: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _JSON_LIMIT:
        raise DataError(f"{url}: {name} unpacks to {size} bytes, limit {_JSON_LIMIT}")
    return archive.read(name)


def _draw_voc(request: Request, url: str, store: Store, used: set[str]) -> dict[str, Any]:
    known = VOC_CLASSES[1:]
    classes = _named("seg", request, known, known)
    lists, objects, start = _voc_lists(url, store)
    shows = {
        part: {name: [image for image in images if name in objects.get(image, ())] for name in classes}
        for part, images in lists.items()
    }
    chosen = choose("seg", request, shows, used)
    names = [name for split in chosen.values() for name in split]
    files = [f"JPEGImages/{name}.jpg" for name in names] + [f"SegmentationClass/{name}.png" for name in names]
    voc_mark(store, url, start, files)  # the download then starts at the first image
    return {"seg": {s: {name: {"image": None, "mask": None} for name in rows} for s, rows in chosen.items()}}


def _voc_lists(url: str, store: Store) -> tuple[dict[str, list[str]], dict[str, set[str]], int]:
    """Read the head of the tar: image lists by part, names of objects by image, offset of the first image.

    Annotations and lists stand before the images there; a tar in another order raises DataError.
    """
    lists: dict[str, list[str]] = {}
    objects: dict[str, set[str]] = {}
    try:
        with (
            RemoteStream(url, store.web) as stream,
            bar(None, "VOC 2012 lists", "B") as stream.progress,
            tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18) as tar,
        ):
            for member in safe_members(tar, url):
                *_, folder, name = ("", *member.name.split("/"))
                stem = name.rpartition(".")[0]
                if folder == "Annotations":
                    text = read_member(tar, member, url).decode("utf-8", "replace")
                    objects[stem] = set(re.findall(r"<name>\s*(\w+)\s*</name>", text))
                elif folder == "Segmentation" and stem in ("train", "val"):
                    lists[stem] = read_member(tar, member, url).decode("ascii", "replace").split()
                elif folder in ("JPEGImages", "SegmentationClass"):
                    if len(lists) == 2 and objects:
                        return lists, objects, member.offset
                    break
    except tarfile.TarError as error:
        raise DataError(f"{url}: not a readable tar ({error}); check --voc-url") from error
    raise DataError(
        f"{url}: annotations and segmentation lists do not come before the images, so nothing can be drawn "
        "from the stream; give the original VOCtrainval_11-May-2012.tar with --voc-url"
    )


def _draw_imagenette(request: Request, url: str, store: Store, used: set[str]) -> dict[str, Any]:
    readable = tuple(IMAGENETTE.values())
    ids = {name: wordnet for wordnet, name in IMAGENETTE.items()}
    classes = [ids[name] for name in _named("cls", request, readable, readable)]
    shows: dict[str, dict[str, list[str]]] = {part: {i: [] for i in classes} for part in ("train", "val")}
    path = fetch_archive(url, store)
    try:
        with tarfile.open(path, mode="r|gz") as tar:
            for member in safe_members(tar, url):
                *_, part, wordnet, name = ("", "", *member.name.split("/"))
                if part in shows and wordnet in shows[part] and re.fullmatch(r"\w+\.JPEG", name):
                    shows[part][wordnet].append(f"{wordnet}/{name}")
    except (tarfile.TarError, zlib.error, EOFError) as error:
        path.unlink()
        raise DataError(f"{url}: not a readable .tgz ({error}); check --imagenette-url") from error
    chosen = choose("cls", request, shows, used)
    rows = {s: {n: {"sha256": None, "from": part} for n, part in names.items()} for s, names in chosen.items()}
    return {"cls": rows}
