"""Fetch the three mini sets, or another sample, from their official sources.

python -m data.download --root data
python -m data.download --root data --tasks det
python -m data.download --root data --tasks pretrain
python -m data.download --root other --sample --train 1000 --val 200 --test 200 --classes det=person,dog

A list of names and SHA-256 sums says what belongs to a set; files already there are checked and kept, so the
same command resumes, and run again it only verifies.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.downloading.fetch import Web, sha256, write_atomic
from data.downloading.official import (
    COCO_URL,
    IMAGENETTE_MD5,
    IMAGENETTE_URL,
    TINY_IMAGENET_MD5,
    TINY_IMAGENET_URL,
    VOC_URL,
    Item,
    Store,
    fetch_checked,
    fetch_coco,
    fetch_imagenette,
    fetch_voc,
)
from data.downloading.sampling import Request, check_classes, draw
from data.errors import DataError

if TYPE_CHECKING:  # so that the command starts without loading torch
    from data.types import Task

MINI = Path(__file__).parent / "manifests" / "mini.json"
FOLDERS: dict[Task, str] = {"seg": "mini_voc_seg", "det": "mini_coco_det", "cls": "imagenette_160"}
TASKS = tuple(FOLDERS)
SPLITS = ("train", "val", "test")
PRETRAIN = "pretrain"
"""Name by which --tasks asks for the archives of stage 0, which are kept as they are."""
_NAME = {"det": r"\d{12}\.jpg", "seg": r"\d{4}_\d{6}", "cls": r"n\d{8}/\w+\.JPEG"}
_FIELDS: dict[Task, tuple[str, ...]] = {
    "det": ("sha256", "from", "size", "boxes"),
    "seg": ("image", "mask"),
    "cls": ("sha256",),
}


@dataclass(frozen=True)
class Sources:
    """Addresses of the three official sources: a folder, a tar and a tgz."""

    coco: str = COCO_URL
    voc: str = VOC_URL
    imagenette: str = IMAGENETTE_URL


def load_manifest(path: Path) -> dict[str, Any]:
    """Read a name list. Raises DataError when it is missing, not a name list, or holds an unsafe name."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable name list ({error}); give another by --manifest") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise DataError(f'{path}: not a name list ("format": 1 expected); give another with --manifest')
    for task in TASKS:
        for wrong in _mistakes(task, manifest.get(task, {})):
            raise DataError(f"{path}: {wrong}; give another by --manifest")
    if manifest.get("det") and not isinstance(manifest.get("categories"), list):
        raise DataError(f'{path}: "det" needs a list of "categories"; give another by --manifest')
    return manifest


def _mistakes(task: Task, splits: Any) -> Iterator[str]:
    """Say what in a task's section of a name list is not as it must be: split -> name -> fields."""
    if not isinstance(splits, dict):
        yield f'"{task}" is no object of splits'
        return
    for split, rows in splits.items():
        if split not in SPLITS:
            yield f"{split!r} is no {task} name"
        elif not isinstance(rows, dict):
            yield f'"{task}" "{split}" is no object of names'
        else:
            yield from (f"{name!r} is no {task} name" for name in rows if not re.fullmatch(_NAME[task], name))
            yield from (
                f"{name!r} of {task} {split} needs {', '.join(_FIELDS[task])}"
                for name, row in rows.items()
                if not isinstance(row, dict) or not row.keys() >= set(_FIELDS[task])
            )


def _files(manifest: dict[str, Any], task: Task) -> Iterator[tuple[dict[str, Any], str, Item]]:
    """Every image and mask of a task, with the row of the list and the field that holds its SHA-256."""
    for split, rows in manifest[task].items():
        folder = Path(FOLDERS[task], split)
        for name, row in rows.items():
            origins = [row["from"]] if row.get("from") else ["train", "val"]
            if task == "det":
                keys = tuple(f"{origin}2017/{name}" for origin in origins)
                yield row, "sha256", Item(folder / "images" / name, row["sha256"], keys)
            elif task == "cls":
                keys = tuple(f"{origin}/{name}" for origin in ("train", "val"))
                yield row, "sha256", Item(folder / name, row["sha256"], keys)
            else:
                image, mask = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
                yield row, "image", Item(folder / "images" / f"{name}.jpg", row["image"], (image,))
                yield row, "mask", Item(folder / "masks" / f"{name}.png", row["mask"], (mask,))


def coco_json(manifest: dict[str, Any], split: str) -> bytes:
    """The COCO JSON of a detection split, built from the boxes in the name list; ids count up from 1."""
    categories = manifest["categories"]
    about = f"Mini-COCO-Det {split}: images of COCO 2017, annotations of {len(categories)} classes"
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for name, row in manifest["det"][split].items():
        number = int(Path(name).stem)
        image = {"id": number, "file_name": name, "width": row["size"][0], "height": row["size"][1]}
        if row["from"]:
            image["coco_url"] = f"{COCO_URL}/{row['from']}2017/{name}"
        images.append(image)
        for category, *box, area, crowd in row["boxes"]:
            entry = {"id": len(objects) + 1, "image_id": number, "category_id": category}
            objects.append(entry | {"bbox": box, "area": area, "iscrowd": crowd})
    whole = {"info": {"description": about}, "images": images, "annotations": objects}
    return json.dumps(whole | {"categories": categories}).encode()


def complete(manifest: dict[str, Any], tasks: Sequence[Task], sources: Sources, store: Store) -> None:
    """Fetch what is missing or damaged of these tasks. Raises DataError when something cannot be had."""
    for task in tasks:
        items = [item for _, _, item in _files(manifest, task)]
        missing = [item for item in items if not store.has(item)]
        intact = len(items) - len(missing)
        print(f"{FOLDERS[task]}: {intact} of {len(items)} files in place and intact", flush=True)
        if missing and task == "det":
            fetch_coco(sources.coco, missing, store)
        elif missing and task == "seg":
            fetch_voc(sources.voc, missing, store)
        elif missing:
            fetch_imagenette(sources.imagenette, missing, store)
        if missing:
            print(f"{FOLDERS[task]}: {len(missing)} fetched", flush=True)
        for split in manifest[task] if task == "det" else ():
            path = store.root / FOLDERS[task] / split / "annotations.json"
            content = coco_json(manifest, split)
            if not path.is_file() or path.read_bytes() != content:
                write_atomic(path, content, store.scratch)


def sample(request: Request, tasks: Sequence[Task], sources: Sources, store: Store) -> None:
    """Draw another sample into `store.root`, whose `sample.json` then lists it. Raises DataError."""
    check_classes(request)
    path = store.root / "sample.json"
    manifest = load_manifest(path) if path.exists() else {"format": 1, "request": request.to_json()}
    if manifest.get("request") != request.to_json():
        raise DataError(f"{path}: drawn with other settings {manifest.get('request')}; choose another --root")
    addresses: dict[Task, str] = {"seg": sources.voc, "det": sources.coco, "cls": sources.imagenette}
    for task in tasks:
        if task not in manifest:
            folder = store.root / FOLDERS[task]
            if folder.exists():
                raise DataError(f"{folder}: holds another set already; choose another --root")
            manifest |= draw(task, request, addresses[task], store, load_manifest(MINI)[task])
            write_atomic(path, json.dumps(manifest).encode(), store.scratch)
    complete(manifest, tasks, sources, store)
    for task in tasks:
        for row, field, item in _files(manifest, task):
            row[field] = sha256((store.root / item.path).read_bytes())
    write_atomic(path, json.dumps(manifest).encode(), store.scratch)


def _check_root(root: Path) -> None:
    try:
        write_atomic(root / ".download" / "writable", b"", root / ".download")
        (root / ".download" / "writable").unlink()
    except OSError as error:
        raise DataError(f"{root}: cannot write there ({error.strerror}); give another by --root") from error


def _tasks(text: str) -> list[Task]:
    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name not in (*TASKS, PRETRAIN)]
    if wrong:
        raise DataError(f"--tasks {text}: {wrong[0]!r} is not a task; choose from {', '.join((*TASKS, PRETRAIN))}")
    return [task for task in TASKS if task in names]


def _classes(pairs: Sequence[str]) -> dict[Task, list[str]]:
    chosen: dict[Task, list[str]] = {}
    for pair in pairs:
        task, equals, names = pair.partition("=")
        if not equals or not names:
            raise DataError(f"--classes {pair}: write TASK=NAME,NAME, for example det=person,dog")
        named = _tasks(task)
        if len(named) != 1:
            raise DataError(f"--classes {pair}: write one task of {', '.join(TASKS)} before the names")
        chosen[named[0]] = [name.strip() for name in names.split(",")]
    return chosen


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = "Fetch the three mini sets, or another sample, from their official sources; resumes, and checks."
    shape = argparse.ArgumentDefaultsHelpFormatter
    top = argparse.ArgumentParser("python -m data.download", description=about, formatter_class=shape)
    what = top.add_argument_group("what")
    what.add_argument("--root", type=Path, default=Path("data"), help="folder that holds the sets")
    what.add_argument("--tasks", default=",".join(TASKS), help="some of seg,det,cls; or pretrain, 350 MB for stage 0")
    what.add_argument("--manifest", type=Path, default=MINI, help="name list to fetch, e.g. a sample.json")
    what.add_argument("--allow-changed", action="store_true", help="accept any image that decodes")
    where = top.add_argument_group("sources")
    where.add_argument("--coco-url", default=COCO_URL, help="folder with train2017/, val2017/, annotations/")
    where.add_argument("--voc-url", default=VOC_URL, help="the VOC 2012 tar; 2 GB pass by, not stored")
    where.add_argument("--imagenette-url", default=IMAGENETTE_URL, help="the Imagenette v2 160 px tgz, 99 MB")
    where.add_argument("--tiny-imagenet-url", default=TINY_IMAGENET_URL, help="the Tiny-ImageNet-200 zip, 248 MB")
    other = top.add_argument_group("another sample, drawn from images that are not in the mini sets")
    other.add_argument("--sample", action="store_true", help="draw instead of fetching the name list")
    other.add_argument("--classes", nargs="+", default=[], metavar="TASK=NAME,NAME", help="empty: as the mini sets")
    other.add_argument("--train", type=int, default=240, help="images per task, from official training")
    other.add_argument("--val", type=int, default=60, help="images per task, from official training")
    other.add_argument("--test", type=int, default=0, help="images per task, from official validation")
    other.add_argument("--seed", type=int, default=0, help="same seed, same images")
    return top


def _run(args: argparse.Namespace) -> None:
    tasks = _tasks(args.tasks)
    sources = Sources(args.coco_url, args.voc_url, args.imagenette_url)
    store = Store(args.root, Web(), args.allow_changed)
    counts = {"train": args.train, "val": args.val, "test": args.test}
    request = Request(_classes(args.classes), counts, args.seed)
    manifest = {} if args.sample else load_manifest(args.manifest)
    _check_root(args.root)
    if PRETRAIN in args.tasks.split(","):
        fetch_checked(args.tiny_imagenet_url, TINY_IMAGENET_MD5, args.root / PRETRAIN, store)
        fetch_checked(args.imagenette_url, IMAGENETTE_MD5, args.root / PRETRAIN, store)
    if args.sample:
        sample(request, tasks, sources, store)
    else:
        complete(manifest, [task for task in tasks if task in manifest], sources, store)
    for left in store.scratch.glob("*.tmp"):
        left.unlink(missing_ok=True)
    if not any(store.scratch.iterdir()):
        store.scratch.rmdir()
    print("all files are in place and intact")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when everything is in place, 2 on a user error, 130 on Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        _run(args)
    except KeyboardInterrupt:
        print("\nstopped; what is saved is kept, and the same command resumes", file=sys.stderr)
        return 130
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
