"""Finds detection sets with one file of boxes per image: YOLO text files, VOC XML files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

from data.alike import Place, alike, common, parts
from data.classes import one_form
from data.tree import ALL, Folder, Found, Tree, listing, split_note, split_rank
from data.voc import split_lists
from data.voc_xml import looks_like_xml
from data.yolo import looks_like_yolo

Kind = Literal["yolo", "xml"]
_SUFFIX = {"yolo": ".txt", "xml": ".xml"}
_WHAT = {"yolo": "YOLO text files", "xml": "VOC XML files"}
_LOOKS = {"yolo": looks_like_yolo, "xml": looks_like_xml}
_MAX_TRIED, _MAX_NEAR, _MAX_READ = 100, 2_000, 20
"""Folders of such files, folders around them and files in them that are looked into."""


def find_box_files(tree: Tree, split: str, kind: Kind, reasons: list[str]) -> Found | None:
    """Take the folder that fits best and has images of the same names in it or near it.

    `reasons` gets a sentence for files that belong to images and hold something else.
    """
    ranked = []
    for folder in tree.folders:
        rank = tree.task_rank(folder.names, "det")
        if rank < 3 and folder.with_suffix({_SUFFIX[kind]}):
            ranked.append(((split_rank(folder.names, split), rank, len(folder.names), folder.names), folder))
    for (fits, *_), files in sorted(ranked, key=lambda entry: entry[0])[:_MAX_TRIED]:
        images = _images_of(tree, files, split, kind) if fits < 3 else None
        if images is not None:
            found = _found(tree, split, (images, files), kind, reasons)
            if found is not None:
                return found
    return None


def _by_stem(names: Sequence[str]) -> dict[str, str]:
    return {one_form(PurePosixPath(name).stem): name for name in reversed(names)}


def _shared(images: Folder, files: Folder, kind: Kind) -> list[tuple[str, str]]:
    """Return image and file of boxes of the same stem, ordered by it."""
    by_stem, of_images = _by_stem(files.with_suffix({_SUFFIX[kind]})), _by_stem(images.images)
    return [(of_images[stem], by_stem[stem]) for stem in sorted(of_images.keys() & by_stem.keys())]


def _images_of(tree: Tree, files: Folder, split: str, kind: Kind) -> Folder | None:
    """Return the nearest folder whose images share names with the files, the one that shares most."""
    for depth in range(len(files.names), -1, -1):
        options = []
        for folder in islice(tree.below(files.names[:depth]), _MAX_NEAR):
            fits = split_rank(folder.names, split)
            overlap = len(_shared(folder, files, kind)) if folder.images and fits < 3 else 0
            if overlap:
                options.append((-overlap, fits, folder.names, folder))
        if options:
            return min(options, key=lambda option: option[:3])[-1]
    return None


def _found(tree: Tree, split: str, place: Place, kind: Kind, reasons: list[str]) -> Found | None:
    """Pair the files of two folders and of those like them, as far as folder names or a list put them in the split."""
    ranks = [split_rank(folder.names, split) for folder in place]
    others = [
        other
        for other in alike(tree, place)
        if [split_rank(folder.names, split) for folder in other] == ranks and _shared(*other, kind)
    ]
    places = parts(tree, place, others)
    pairs = [(i.path / image, f.path / file) for i, f in places for image, file in _shared(i, f, kind)]
    odd = next(filter(None, (_LOOKS[kind](file) for _, file in pairs[:_MAX_READ])), None)
    if odd is not None:
        reasons.append(odd)
        return None
    images = [folder.path / name for folder, _ in places for name in folder.images]
    layout = f"{_WHAT[kind]} in {_listed(tree, [f for _, f in places])}, images in {_listed(tree, [i for i, _ in places])}"
    if split != ALL and min(ranks) == 2:
        top = common([folder.names for each in places for folder in each])
        stems = {path.stem for path in images}
        lists = [found for depth in range(len(top), -1, -1) for found in split_lists(tree, top[:depth], split, stems, "main")]
        if not lists:
            return None
        images = [path for path in images if path.stem in lists[0][1]]
        layout += f", listed in {tree.relative(lists[0][0])}"
    # An image without XML file is not annotated; one without text file has no objects.
    kept = {image for image, _ in pairs} if kind == "xml" else set(images)
    images = [path for path in images if path in kept]
    wanted = set(images)
    pairs = [pair for pair in pairs if pair[0] in wanted]
    bare = [path.name for path in images if path not in {image for image, _ in pairs}]
    notes = (*split_note(split), *([f"{len(bare)} images without a text file (no objects): {listing(bare)}"] if bare else []))
    return Found(
        "det", split, layout, tree.root.joinpath(*place[1].names), tuple(images), place[1].path, pairs=tuple(pairs), notes=notes
    )


def _listed(tree: Tree, folders: Sequence[Folder]) -> str:
    return listing(f"{tree.relative(folder.path)}/" for folder in folders)
