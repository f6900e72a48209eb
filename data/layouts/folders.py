"""Reader of classification sets: one folder per class."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.classes import IMAGENETTE, NameIndex, folder_position, imagenette_name, one_form
from data.errors import DataError
from data.layouts.class_folders import is_shelf
from data.layouts.tree import Found, listing
from data.types import Record, TaskSet

_IMAGENET_FILE = re.compile(r"n\d{8}_\d+|ILSVRC2012_")
"""How the names of ImageNet's files begin."""


def class_names(folders: Sequence[str], classes: Sequence[str] | None = None, numbered: bool = True) -> dict[str, str]:
    """Return folder -> class name.

    A folder that stands for one of `classes` is that class. WordNet ids and names of Imagenette give its readable
    names, so do `0`..`9` where all folders are such numbers (position in the sorted WordNet ids) and `numbered`.
    Others stand for themselves.
    """
    readable = tuple(IMAGENETTE.values())
    numbered = numbered and _are_positions(folders)
    known = NameIndex(classes or ())
    names = {}
    for folder in folders:
        position = folder_position(folder, known)
        if classes is not None and position is not None:
            names[folder] = classes[position]
        elif numbered:
            names[folder] = readable[int(folder)]
        else:
            names[folder] = imagenette_name(folder) or one_form(folder)
    return names


def _are_positions(folders: Sequence[str]) -> bool:
    return all(name.isdecimal() and int(name) < len(IMAGENETTE) for name in folders)


@dataclass(frozen=True)
class _Labels:
    """The class folder of every image, the name of each folder's class, and how numbers were read."""

    folders: dict[Path, str]
    names: dict[str, str]
    order: str = ""
    notes: tuple[str, ...] = ()

    def unknown(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The names that are none of `classes`."""
        known = NameIndex(classes)
        return tuple(name for name in _sorted_names(set(self.names.values())) if known(name) is None)

    def all_unknown(self, classes: Sequence[str]) -> bool:
        """Whether no name is one of `classes`."""
        return set(self.unknown(classes)) == set(self.names.values())


def _labels(found: Found, classes: Sequence[str] | None) -> _Labels:
    """Name the class of every folder: numbers that are no names count up in Imagenette's order or that of `classes`."""
    folders = _folders_of(found, classes)
    distinct = sorted(set(folders.values()))
    reason = _imagenette_order(found) if _are_positions(distinct) else ""
    labels = _Labels(folders, class_names(distinct, classes, numbered=bool(reason)))
    if reason and any(labels.names[folder] != folder for folder in distinct):
        return replace(labels, order=f"; numbers are positions among Imagenette's classes, because {reason}")
    if classes is None or not labels.all_unknown(classes) or not _count_up(distinct, len(classes)):
        return labels
    note = f"the folders 0 to {len(classes) - 1} are read as the classes in their order: {listing(classes)}"
    return replace(labels, names={folder: classes[int(folder)] for folder in distinct}, notes=(note,))


def _count_up(folders: Sequence[str], count: int) -> bool:
    """Return whether the names of folders are the numbers from 0 on, one for each of `count` classes."""
    return all(name.isdecimal() for name in folders) and sorted(map(int, folders)) == list(range(count))


def has_no_class(found: Found, classes: Sequence[str] | None) -> bool:
    """Return whether no folder of a classification set stands for one of `classes`, if these are given."""
    return classes is not None and _labels(found, classes).all_unknown(classes)


def read_folders(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a classification set: the label of an image is the class of its folder.

    Without `classes`, Imagenette classes come in the order of their WordNet ids, other folder names sorted.
    With `classes`, folders that stand for none of them become `TaskSet.unknown`.
    Raises DataError if there is no image, or if no folder stands for one of `classes`.
    """
    if not found.images:
        raise DataError(f"{found.folder}: no image in any class folder; check the path")
    labels = _labels(found, classes)
    present = _sorted_names(set(labels.names.values()))
    if classes is None:
        classes = present
    elif labels.all_unknown(classes):
        raise DataError(
            f"{found.folder}: none of the folders ({listing(labels.names)}) is a class of {listing(classes, 10)}; "
            f"name each folder after its class, or all of them 0 to {len(classes) - 1} in this order"
        )
    known, unknown = NameIndex(classes), labels.unknown(classes)
    extra = {name: len(classes) + position for position, name in enumerate(unknown)}
    of_name = {name: extra[name] if name in extra else known(name) for name in present}
    paths = sorted(found.images, key=_order)
    records = tuple(Record(path, label=of_name[labels.names[labels.folders[path]]]) for path in paths)
    layout, notes = found.layout + labels.order, (*found.notes, *labels.notes)
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
        above, inside = ([folder_position(name, known) is not None for name in some] for some in (inner, below))
        if not any(above) and any(inside):
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
