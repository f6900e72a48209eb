"""Reader of classification sets: one folder per class."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data.classes import IMAGENETTE, NameIndex, imagenette_name, one_form
from data.errors import DataError
from data.layouts.class_folders import is_shelf
from data.layouts.tree import Found, listing
from data.types import Record, TaskSet

_IMAGENET_FILE = re.compile(r"n\d{8}_\d+|ILSVRC2012_")
"""How the names of ImageNet's files begin."""


def class_names(folders: Sequence[str], classes: Sequence[str] | None = None, numbered: bool = True) -> dict[str, str]:
    """Return folder -> class name.

    A folder named like one of `classes` is that class. WordNet ids and names of Imagenette give its readable
    names, so do `0`..`9` where all folders are such numbers (position in the sorted WordNet ids) and `numbered`.
    Others stand for themselves.
    """
    readable = tuple(IMAGENETTE.values())
    numbered = numbered and _are_positions(folders)
    known = NameIndex(classes or ())
    names = {}
    for folder in folders:
        position = known(folder)
        if classes is not None and position is not None:
            names[folder] = classes[position]
        elif numbered:
            names[folder] = readable[int(folder)]
        else:
            names[folder] = imagenette_name(folder) or one_form(folder)
    return names


def _are_positions(folders: Sequence[str]) -> bool:
    return all(name.isdecimal() and int(name) < len(IMAGENETTE) for name in folders)


def read_folders(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a classification set: the label of an image is the class of its folder.

    Without `classes`, Imagenette classes come in the order of their WordNet ids, other folder names sorted.
    With `classes`, folders that stand for none of them become `TaskSet.unknown`.
    Raises DataError if there is no image.
    """
    if not found.images:
        raise DataError(f"{found.folder}: no image in any class folder; check the path")
    folders = _folders_of(found, classes)
    distinct = sorted(set(folders.values()))
    positions = _are_positions(distinct)
    reason = _imagenette_order(found) if positions else ""
    names = class_names(distinct, classes, numbered=bool(reason))
    notes, layout = found.notes, found.layout
    if reason and any(names[folder] != folder for folder in distinct):
        layout += f"; numbers are positions among Imagenette's classes, because {reason}"
    present = _sorted_names(set(names.values()))
    if classes is None:
        classes = present
    known = NameIndex(classes)
    unknown = tuple(name for name in present if known(name) is None)
    if positions and not reason and len(unknown) == len(present):
        notes = (*notes, f"the folders {listing(distinct)} are classes of these names, not positions among others")
    extra = {name: len(classes) + position for position, name in enumerate(unknown)}
    labels = {name: extra[name] if name in extra else known(name) for name in present}
    paths = sorted(found.images, key=_order)
    records = tuple(Record(path, label=labels[names[folders[path]]]) for path in paths)
    return TaskSet("cls", found.split, layout, tuple(classes), records, unknown, notes)


def _folders_of(found: Found, classes: Sequence[str] | None) -> dict[Path, str]:
    """Return the class folder of every image: the uppermost, or the one in it where that is a shelf.

    With `classes`, the folder just around the images counts if the names there are those of classes, and not above.
    """
    parts = {path: path.relative_to(found.folder).parts[:-1] for path in found.images}
    inner: dict[str, set[str]] = defaultdict(set)
    for names in parts.values():
        inner[names[0]].add(names[1] if len(names) > 1 else "")
    if all(is_shelf(name, sorted(some)) for name, some in inner.items()):
        return {path: names[1] for path, names in parts.items()}
    if classes is not None:
        known = NameIndex(classes)
        below = {name for some in inner.values() for name in some}
        if not any(known(name) is not None for name in inner) and any(known(name) is not None for name in below):
            return {path: names[1] if len(names) > 1 else names[0] for path, names in parts.items()}
    return {path: names[0] for path, names in parts.items()}


def _imagenette_order(found: Found) -> str:
    """Return why numbers can be taken for positions among Imagenette's classes; empty if they cannot."""
    if any("imagenette" in name.lower() for name in found.folder.absolute().parts[-3:]):
        return "the set is called so"
    if all(_IMAGENET_FILE.match(path.name) for path in found.images):
        return "its files are named as those of ImageNet"
    # Few other sets are written so, in capitals.
    return "its files end in .JPEG as those of ImageNet" if all(p.suffix == ".JPEG" for p in found.images) else ""


def _order(path: Path) -> tuple[str, str]:
    return path.name, str(path)


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    """Sort names: Imagenette's in the order of their WordNet ids, then numbers by value, then the rest."""
    rank = {name: position for position, name in enumerate(IMAGENETTE.values())}

    def key(name: str) -> tuple[int, int, str]:
        if name in rank:
            return 0, rank[name], name
        return (1, int(name), name) if name.isdecimal() else (2, 0, name)

    return tuple(sorted(names, key=key))
