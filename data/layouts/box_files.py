"""Finds detection sets with one file of boxes per image: YOLO text files, VOC XML files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from data.classes import one_form
from data.layouts.alike import FolderPair, alike, common, parts
from data.layouts.near import images_near, ties
from data.layouts.tree import ALL, Folder, Found, Tree, listing, other_set, split_note, split_rank
from data.layouts.voc import split_lists
from data.layouts.voc_xml import looks_like_xml
from data.layouts.yolo import looks_like_yolo

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
        shares = partial(_shared, files=files, kind=kind)
        images = images_near(tree, files, split, "det", shares, _MAX_NEAR) if fits < 3 else []
        found = _found(tree, split, (images[0], files), kind, reasons) if images else None
        if found is not None:
            return replace(found, notes=(*found.notes, *ties(tree, images[1:])))
    return None


def _by_stem(names: Sequence[str]) -> dict[str, str]:
    return {one_form(PurePosixPath(name).stem): name for name in reversed(names)}


def _shared(images: Folder, files: Folder, kind: Kind) -> list[tuple[str, str]]:
    """Return image and file of boxes of the same stem, ordered by it."""
    by_stem, of_images = _by_stem(files.with_suffix({_SUFFIX[kind]})), _by_stem(images.images)
    return [(of_images[stem], by_stem[stem]) for stem in sorted(of_images.keys() & by_stem.keys())]


def _found(tree: Tree, split: str, folders: FolderPair, kind: Kind, reasons: list[str]) -> Found | None:
    """Pair the files of two folders and of those like them, as far as folder names or a list put them in the split."""
    ranks = [split_rank(folder.names, split) for folder in folders]
    others = [
        other
        for other in alike(tree, folders, "det")
        if [split_rank(folder.names, split) for folder in other] == ranks and _shared(*other, kind)
    ]
    chosen = parts(tree, folders, others)
    pairs = [(i.path / image, f.path / file) for i, f in chosen for image, file in _shared(i, f, kind)]
    odd = next(filter(None, (_LOOKS[kind](file) for _, file in pairs[:_MAX_READ])), None)
    if odd is not None:
        reasons.append(odd)
        return None
    images = [folder.path / name for folder, _ in chosen for name in folder.images]
    of_images, of_files = map(tree.listing, zip(*chosen))
    layout = f"{_WHAT[kind]} in {of_files}, images in {of_images}"
    if split != ALL and min(ranks) == 2:
        listed = _list_of(tree, common([folder.names for each in chosen for folder in each]), split, images)
        if listed is None:
            return None
        images = [path for path in images if path.stem in listed[1]]
        layout += f", listed in {tree.relative(listed[0])}"
    annotated = {image for image, _ in pairs}
    bare = [path for path in images if path not in annotated]
    notes = split_note(split)
    if kind == "xml":  # An image without XML file is not annotated; one without text file has no objects.
        images = [path for path in images if path in annotated]
    elif bare:
        notes += (f"{len(bare)} images without a text file (no objects): {listing(path.name for path in bare)}",)
    unused = [other for other in others if other not in chosen]
    if unused:
        notes += (other_set(f"{_WHAT[kind]} in {tree.listing(files for _, files in unused)}"),)
    wanted, files = set(images), folders[1].path
    pairs = [pair for pair in pairs if pair[0] in wanted]
    return Found("det", split, layout, files, tuple(images), files, pairs=tuple(pairs), notes=notes)


def _list_of(tree: Tree, top: tuple[str, ...], split: str, images: Sequence[Path]) -> tuple[Path, set[str]] | None:
    """Return the nearest list of a split that names some of the images, and the stems in it."""
    stems = {path.stem for path in images}
    for depth in range(len(top), -1, -1):
        for listed in split_lists(tree, top[:depth], split, stems, "main"):
            return listed
    return None
