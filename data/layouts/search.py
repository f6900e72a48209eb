"""Finds one split of one task's set below a folder, whatever its layout."""

from __future__ import annotations

from pathlib import Path

from data.errors import DataError, SetNotFound
from data.layouts.finders import ALL, Documents, find_cls, find_det, find_seg
from data.layouts.tree import SPLIT_WORDS, Found, Tree, listing, scan, split_of, words
from data.types import Task

SPLITS = ("train", "val", "test")
_LOOKED_FOR: dict[Task, str] = {
    "det": "detection set (a COCO JSON with images, annotations and categories, and its images)",
    "seg": "segmentation set (images and PNG masks of the same stem)",
    "cls": "classification set (one folder of images per class)",
}


def find_set(root: Path | str, task: Task, split: str | None = None) -> Found:
    """Find the set of one task below `root`: a data folder, the set's own folder, or a split of it.

    `split` is any usual name of train, val or test; None means test, else val, else everything there is.
    Where no folder or file names a split, every image belongs to the set.
    Raises DataError if nothing is found, or if the annotation file of the wanted split is broken.
    """
    wanted = None if split is None else split_of(split)
    if split is not None and wanted is None:
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    tree, documents = scan(Path(root)), Documents()
    for candidate in ("test", "val", ALL, "train") if wanted is None else (wanted,):
        found = _find(tree, task, candidate, documents)
        if found is not None:
            return found
    others = [name for name in SPLITS if name != wanted and _find(tree, task, name, documents)]
    if wanted is not None and not others and not _contradicts(tree.root, wanted):
        found = _find(tree, task, ALL, documents)
        if found is not None:
            return found
    raise _missing(tree, task, wanted, others, documents)


def _find(tree: Tree, task: Task, split: str, documents: Documents) -> Found | None:
    if task == "det":
        return find_det(tree, split, documents)
    return find_seg(tree, split) if task == "seg" else find_cls(tree, split)


def _contradicts(root: Path, wanted: str) -> bool:
    """Tell whether the root is itself a folder `train` where evaluation is wanted, or the reverse."""
    said = words(root.resolve().name)
    named = SPLIT_WORDS.get(said[0]) if len(said) == 1 else None
    return named is not None and named != wanted and "train" in (named, wanted)


def _missing(tree: Tree, task: Task, wanted: str | None, others: list[str], documents: Documents) -> DataError:
    which = f"{wanted} split of a " if wanted else ""
    there = tree.folders[0]
    entries = listing([f"{name}/" for name in there.folders] + list(there.files), 8) or "nothing"
    also = f"; other splits found: {', '.join(others)}" if others else ""
    kind = DataError if documents.errors else SetNotFound
    unfit = f" ({next(iter(documents.errors.values()))})" if documents.errors else ""
    return kind(
        f"{tree.root}: no {which}{_LOOKED_FOR[task]} found below it{unfit}; it holds {entries}{also}; "
        "run `python -m data.download --root data` or check --data_root"
    )
