"""Reader of classification sets: one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.classes import IMAGENETTE, imagenette_name, name_index
from data.errors import DataError
from data.layouts.tree import Found
from data.types import Record, TaskSet


def class_names(folders: Sequence[str], classes: Sequence[str] | None = None) -> dict[str, str]:
    """Return folder -> class name.

    A folder named like one of `classes` is that class. WordNet ids and names of Imagenette give its readable
    names, so do `0`..`9` where all folders are such numbers (position in the sorted WordNet ids).
    Others stand for themselves.
    """
    readable = tuple(IMAGENETTE.values())
    numbered = all(name.isdecimal() and int(name) < len(readable) for name in folders)
    names = {}
    for folder in folders:
        position = None if classes is None else name_index(folder, classes)
        if classes is not None and position is not None:
            names[folder] = classes[position]
        elif numbered:
            names[folder] = readable[int(folder)]
        else:
            names[folder] = imagenette_name(folder) or folder
    return names


def read_folders(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a classification set: the label of an image is the class of its folder.

    Without `classes`, Imagenette classes come in the order of their WordNet ids, other folder names sorted.
    With `classes`, folders that stand for none of them become `TaskSet.unknown`.
    Raises DataError if there is no image.
    """
    if not found.images:
        raise DataError(f"{found.folder}: no image in any class folder; check --data_root")
    folders = {path: path.relative_to(found.folder).parts[0] for path in found.images}
    names = class_names(sorted(set(folders.values())), classes)
    present = _sorted_names(set(names.values()))
    if classes is None:
        classes = present
    unknown = tuple(name for name in present if name_index(name, classes) is None)
    every_name = (*classes, *unknown)
    records = []
    for path in sorted(found.images, key=_order):
        records.append(Record(path, label=name_index(names[folders[path]], every_name)))
    return TaskSet("cls", found.split, found.layout, tuple(classes), tuple(records), unknown, found.notes)


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
