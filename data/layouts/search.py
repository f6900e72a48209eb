"""Finds one split of one task's set below a folder, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from data.errors import DataError, OtherDocument, SetNotFound
from data.layouts.box_files import find_box_files
from data.layouts.class_folders import find_cls
from data.layouts.finders import Documents, find_det
from data.layouts.folders import has_no_class
from data.layouts.mask_folders import find_seg
from data.layouts.passed_over import passed_over
from data.layouts.tree import ALL, MAX_FOLDERS, SPLIT_WORDS, Found, Tree, listing, scan, split_of, words
from data.types import Task

SPLITS = ("train", "val", "test")
_LOOKED_FOR: dict[Task, str] = {
    "det": "detection set (a COCO JSON with images, annotations and categories, YOLO text files or VOC XML files, "
    "and their images)",
    "seg": "segmentation set (images and PNG masks of the same stem)",
    "cls": "classification set (one folder of images per class)",
}


@dataclass
class _Search:
    """One search below a root, and the reasons why things that looked like a set are none."""

    tree: Tree
    task: Task
    classes: Sequence[str] | None = None
    documents: Documents = field(default_factory=Documents)
    reasons: list[str] = field(default_factory=list)

    def finders(self) -> list[Callable[[str], Found | None]]:
        """The ways to find the task's sets by the name of a split, the most usual format first."""
        if self.task == "det":
            return [
                partial(find_det, self.tree, documents=self.documents),
                *(partial(find_box_files, self.tree, kind=kind, reasons=self.reasons) for kind in ("yolo", "xml")),
            ]
        if self.task == "seg":
            return [partial(find_seg, self.tree, reasons=self.reasons)]
        return [partial(find_cls, self.tree, reasons=self.reasons)]

    def first(self, splits: tuple[str, ...]) -> Found | None:
        """Return what the first finder that finds any of the splits finds; sets without labels come last."""
        bare: Found | None = None
        for find in self.finders():
            for split in splits:
                if bare and split == "train":
                    continue  # that labels are kept back is no reason to score training images
                found = find(split)
                if found and not self._lacks(found):
                    passed = (f"passed over, {self._lacks(bare)}: {bare.layout}",) if bare else ()
                    return replace(found, notes=(*found.notes, *passed))
                bare = bare or found
        return bare

    def _lacks(self, found: Found) -> str:
        """Return how a set is without labels, as hidden test splits are; empty if it has some."""
        if self.task == "cls":
            return "no folder stands for a class" if has_no_class(found, self.classes) else ""
        if self.task == "seg":
            return ""
        boxes = any(f.stat().st_size for _, f in found.pairs) if found.pairs else found.document["annotations"]
        return "" if boxes else "without any box"


def find_set(root: Path | str, task: Task, split: str | None = None, classes: Sequence[str] | None = None) -> Found:
    """Find the set of one task below `root`: a data folder, the set's own folder, or a split of it.

    `split` is any usual name of train, val or test; None means test, else val, else everything there is.
    Where no folder or file names a split, every image belongs to the set. Folders of which none is one of `classes`
    come last.
    Raises DataError if nothing is found, or if the annotation file of the wanted split is broken.
    """
    wanted = None if split is None else split_of(split)
    if split is not None and wanted is None:
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    search = _Search(scan(Path(root)), task, classes)
    found = search.first(("test", "val", ALL, "train") if wanted is None else (wanted,))
    others = [] if found else [name for name in SPLITS if name != wanted and search.first((name,))]
    if found is None and wanted is not None and not others and not _contradicts(search.tree.root, wanted):
        found = search.first((ALL,))
    if found is None:
        raise _missing(search, wanted, others)
    if not search.tree.complete:
        note = f"only the first {MAX_FOLDERS} folders below the root were looked through"
        found = replace(found, notes=(*found.notes, note))
    return found


def _contradicts(root: Path, wanted: str) -> bool:
    """Return whether the root is itself a folder `train` where evaluation is wanted, or the reverse."""
    name_words = words(root.resolve().name)
    named = SPLIT_WORDS.get(name_words[0]) if len(name_words) == 1 else None
    return named is not None and named != wanted and "train" in (named, wanted)


def _missing(search: _Search, wanted: str | None, others: list[str]) -> DataError:
    """Return the error that names what was looked for, why what is there does not do, and the remedy."""
    tree, documents = search.tree, search.documents
    which = f"{wanted} split of a " if wanted else ""
    there = tree.folders[0]
    entries = listing([f"{name}/" for name in there.folders] + list(there.files), 8) or "nothing"
    also = f"; other splits found: {', '.join(others)}" if others else ""
    foreign = [str(error) for error in documents.errors.values() if isinstance(error, OtherDocument)]
    broken = [str(error) for error in documents.errors.values() if not isinstance(error, OtherDocument)]
    failed = [*documents.unmatched.values(), *broken]
    unread = passed_over(tree, search.task)
    why = [*failed[:2], *unread, *dict.fromkeys(search.reasons), *foreign[:1], *_hidden_by_name(search, wanted)][:3]
    kind = DataError if failed else SetNotFound
    unfit = f" ({'; '.join(why)})" if why else ""
    return kind(
        f"{tree.root}: no {which}{_LOOKED_FOR[search.task]} found below it{unfit}; it holds {entries}{also}; "
        "check the path, or run `python -m data.download --root data` for the mini sets"
    )


def _hidden_by_name(search: _Search, wanted: str | None) -> list[str]:
    """Return a sentence about a set that is passed over because a folder's name is that of another task."""
    lenient = _Search(replace(search.tree, lenient=True), search.task, search.classes)
    try:
        found = lenient.first((wanted,) if wanted else ("test", "val", ALL, "train"))
    except DataError:
        return []
    if found is None:
        return []
    return [f"{found.folder} looks like one, but a folder's name is that of another task: give {found.folder} as root"]
