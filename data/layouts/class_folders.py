"""Finds classification sets: a folder whose folders hold the images of one class each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from data.classes import imagenette_name
from data.images import looks_like_mask
from data.layouts.tree import (
    ALL,
    KNOWN_WORDS,
    Folder,
    Found,
    Tree,
    counted,
    listing,
    other_set,
    role_of,
    split_note,
    split_of,
    split_rank,
    words,
)
from data.layouts.voc import pair_in_one_folder, pair_names

_ABOUT = frozenset({"info", "meta", "metadata", "license", "readme", "config", "classes", "labels"})
"""Words in the name of a JSON that is about a folder, not about boxes on its images."""


@dataclass
class _Classes:
    """The class folders in one folder, and the images of each."""

    parent: Folder
    rank: tuple[int, int]
    images: dict[str, list[Path]] = field(default_factory=dict)
    nested: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    @property
    def known(self) -> int:
        """How many of the folders are named as classes of Imagenette."""
        return sum(imagenette_name(name) is not None for name in self.images)

    @property
    def order(self) -> tuple[int, int, int, int, int, tuple[str, ...]]:
        """Smaller is better: the split, the task, known names, many classes, few folders above."""
        return (*self.rank, -self.known, -len(self.images), len(self.parent.names), self.parent.names)


def find_cls(tree: Tree, split: str, reasons: list[str]) -> Found | None:
    """Take the folder that holds most class folders: by its name, then by known class names.

    `reasons` gets a sentence for a folder with one class folder only, which may be anything.
    """
    candidates: list[_Classes] = []
    inside: set[tuple[str, ...]] = set()
    for folder in tree.folders:  # from above: what lies in a class folder is of that class
        if folder.names[:-1] in inside and folder.names:
            inside.add(folder.names)
        rank = tree.task_rank(folder.names, "cls")
        if folder.names in inside or not folder.folders or rank == 3:
            continue
        found = _classes_in(tree, folder, split, rank)
        if len(found.images) == 1 and not found.known and rank > 0:
            only = f"{tree.relative(folder.path)}/ holds one folder of images only, {next(iter(found.images))}/"
            reasons += [f"{only}: for a set of one class name the folder around it classification"]
        elif not found.images:
            continue
        elif not _are_sets(tree, found, split):
            candidates.append(found)
            inside |= {(*folder.names, name) for name in found.images}
    if not candidates:
        return None
    best = min(candidates, key=lambda each: each.order)
    result = _found_cls(tree, split, best)
    for other in candidates:
        if other is not best and other.rank[0] == best.rank[0] and len(other.images) > 1:
            return replace(result, notes=(*result.notes, other_set(_layout(tree, other))))
    return result


def _layout(tree: Tree, found: _Classes) -> str:
    return f"one folder per class in {tree.relative(found.parent.path)}/"


def _found_cls(tree: Tree, split: str, best: _Classes) -> Found:
    folder = best.parent
    paths = [path for images in best.images.values() for path in images]
    empty = {child.path.name for child in tree.children(folder) if not child.images and not child.folders}
    notes = (
        *split_note(split),
        *counted("class folders without image (left out)", sorted(empty)),
        *counted("folders with images that are no classes (left out)", sorted(best.passed_over)),
        *counted("images beside the class folders (left out)", folder.images),
        *_nested(best),
    )
    return Found("cls", split, _layout(tree, best), folder.path, tuple(paths), notes=notes)


def _nested(best: _Classes) -> tuple[str, ...]:
    """Return a note about folders in class folders."""
    inner = [PurePosixPath(path).parts for path in best.nested]
    shelves = best.nested and all(is_shelf(names[0], names[1:2]) for names in inner)
    what = "are classes, on shelves of one letter" if shelves else "inside class folders: their images are of those"
    return (f"{len(best.nested)} folders {what} ({listing(best.nested)})",) if best.nested else ()


def _classes_in(tree: Tree, folder: Folder, split: str, rank: int) -> _Classes:
    """Return the class folders directly in a folder."""
    found = _Classes(folder, (split_rank(folder.names, split), rank))
    children = tree.children(folder)
    structural = [child for child in children if _is_structural(child)]
    split_below = []
    for child in children:
        if child in structural:
            continue
        inside = _inside(tree, child, split)
        if inside:
            found.images[child.path.name] = [sub.path / name for sub in inside for name in sub.images]
            deeper = [sub for sub in inside if sub is not child and not _is_structural(sub)]
            found.nested += ["/".join(sub.names[len(folder.names) :]) for sub in deeper]
            if any(split_of(sub.names[-1]) for sub in inside if sub is not child):
                split_below.append(child.path.name)
    # `x/train` and `x/val` are a set of their own rather than splits of one class x.
    if len(split_below) == 1 and imagenette_name(split_below[0]) is None:
        del found.images[split_below[0]]
    as_classes = _named_like_structure(tree, folder, structural, found)
    for child in as_classes:
        found.images[child.path.name] = [child.path / name for name in child.images]
    taken = found.images.keys()
    found.passed_over = [f"{c.path.name}/" for c in children if c.images and c.path.name not in taken] if taken else []
    return found


def _inside(tree: Tree, child: Folder, split: str) -> list[Folder]:
    """Return the folders that hold the images of one class: its own and those in it; [] if it is a set of its own."""
    depth, inside = len(child.names), []
    for sub in tree.below(child.names):
        inner = sub.names[depth:]
        parts = [name for name in inner if _says_structure(name)]
        splits = [name for name in parts if split_of(name)]
        if splits and (len(inner) > 1 or any(below.images for below in tree.children(sub))):
            return []
        if any(role_of((name,)) == "mask" for name in parts) or _is_annotated(sub):
            return []
        # The name of the class means nothing for the split: think of "test tube".
        fits = split_rank((*child.names[:-1], *inner), split)
        if sub.images and fits in ((2,) if split == ALL else (0, 1)):
            inside.append(sub)
    return inside


def _are_sets(tree: Tree, found: _Classes, split: str) -> bool:
    """Return whether the folders are sets with classes of their own: no split is named, and all hold several classes.

    `dog/batch1`, `dog/batch2` are parts of one class; `a/airport` and `a/airfield` lie on the shelf of a letter.
    """
    parent = found.parent
    inner = {name: tree.below((*parent.names, name))[0] for name in found.images}
    below = {name: [n for n in child.folders if not _says_structure(n)] for name, child in inner.items()}
    if not found.known and any(imagenette_name(n) for some in below.values() for n in some):
        return True
    if split != ALL or found.rank[1] == 0 or any(child.images for child in inner.values()):
        return False
    different = all(len({re.sub(r"[\W\d_]+", "", n) for n in some}) > 1 for some in below.values())
    shelves = all(is_shelf(name, some) for name, some in below.items())
    return different and not shelves


def is_shelf(name: str, inner: Sequence[str]) -> bool:
    """Return whether a folder of one letter holds folders that begin with it, as in Places365 (`a/airfield`)."""
    return len(name) == 1 and bool(inner) and all(n.casefold().startswith(name.casefold()) for n in inner)


def _named_like_structure(tree: Tree, parent: Folder, named: list[Folder], found: _Classes) -> list[Folder]:
    """Return the folders called train, photo, label or the like that are classes among others: by what they hold."""
    beside = [child for child in tree.children(parent) if child.path.name in found.images and child.images]
    filled = [child for child in named if child.images and not child.folders and not _is_annotated(child)]
    annotated = _is_annotated(parent) or any(child.with_suffix({".json", ".xml"}) for child in named)
    splits = {split_of(child.path.name) for child in named} - {None}
    if not beside or not filled or annotated or len(splits) > 1:
        return []
    return [child for child in filled if not any(_are_paired(child, other) for other in (*filled, *beside))]


def _are_paired(first: Folder, second: Folder) -> bool:
    """Return whether one of two folders holds the masks of the other's images."""
    if first is second:
        return False
    for images, masks in ((first, second), (second, first)):
        pairs = pair_names(images.images, masks.masks)
        mask = next(iter(pairs.values()), None)
        if mask is not None and 2 * len(pairs) >= len(masks.masks) and looks_like_mask(masks.path / mask[1]):
            return True
    return False


def _is_structural(folder: Folder) -> bool:
    return _says_structure(folder.path.name)


def _says_structure(name: str) -> bool:
    """Return whether a name holds words of splits, tasks or files only, and so perhaps of no class."""
    name_words = set(words(name))
    return name_words <= KNOWN_WORDS and bool(name_words - {"class", "classes"})


def _is_annotated(folder: Folder) -> bool:
    """Return whether a folder holds annotations of its images: a JSON, a text or XML file of the same stem, masks."""
    if not folder.images:
        return False
    if any(not set(words(name)) & _ABOUT or len(words(name)) > 2 for name in folder.with_suffix({".json"})):
        return True
    stems = {PurePosixPath(name).stem for name in folder.with_suffix({".txt", ".xml"})}
    if stems and not stems.isdisjoint(PurePosixPath(name).stem for name in folder.images):
        return True
    pairs = pair_in_one_folder(folder.images) if folder.masks else {}
    return bool(pairs) and all(looks_like_mask(folder.path / mask) for _, mask in list(pairs.values())[:3])
