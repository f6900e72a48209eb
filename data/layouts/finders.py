"""Where in a tree of folders one split of one task lies: one finder per task, by what the files hold."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from data.classes import imagenette_name
from data.errors import DataError
from data.images import looks_like_mask
from data.layouts.coco import file_parts, load_document
from data.layouts.tree import (
    KNOWN_WORDS,
    Folder,
    Found,
    Tree,
    listing,
    role_of,
    split_of,
    split_rank,
    task_rank,
    words,
)
from data.layouts.voc import masks_in_one_folder, pair_in_one_folder, pair_names, split_lists

ALL = "all"
"""The split of a set that has no split anywhere: every image."""

_MAX_TRIED = 200
"""Candidates looked into, likely ones first: a folder with one JSON per image must not take for ever."""

_LIKELY = frozenset({"instances", "annotations", "annotation", "labels", "bbox"})
_UNLIKELY = frozenset({"captions", "keypoints", "panoptic", "stuff", "info", "results", "predictions"})
_DRAWN = frozenset({"vis", "color", "colour", "overlay", "preview"})
# SegmentationObject numbers the objects: its files look like masks of classes and are none.
_OBJECTS = frozenset({"object", "objects", "instance", "instances"})


class Documents:
    """The JSON files read during one search, each of them parsed once."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, Any]] = {}
        self.errors: dict[Path, DataError] = {}

    def get(self, path: Path) -> dict[str, Any] | None:
        """Return the content of a COCO detection file, None (and an entry in `errors`) if it is none."""
        if path not in self._read and path not in self.errors:
            try:
                self._read[path] = load_document(path)
            except DataError as error:
                self.errors[path] = error
        return self._read.get(path)


def find_det(tree: Tree, split: str, documents: Documents) -> Found | None:
    """Take the JSON that fits the split best and lists most of the images that lie near it.

    Raises DataError if the only JSON that names the split is broken: another split must not hide that.
    """
    best: tuple[float, Found] | None = None
    broken: list[DataError] = []
    for folder, name in _json_files(tree, split)[:_MAX_TRIED]:
        names = (*folder.names, Path(name).stem)
        path, rank = folder.path / name, split_rank(names, split)
        # A JSON of another split serves only if that split has no images: then a folder was renamed.
        if rank == 3 and (best is not None or broken or _has_own_images(tree, names)):
            continue
        near = _nearest(tree, folder, path, split, rank, documents)
        if rank < 2 and path in documents.errors:
            broken.append(documents.errors[path])
        if near is None:
            continue
        document, share, folders = near
        found = _found_det(tree, split, path, document, folders)
        # Person keypoints come with boxes too, of one class.
        share *= 0.5 if any("keypoints" in annotation for annotation in document["annotations"][:1]) else 1.0
        if share > 0.5:
            return found
        if best is None or share > best[0]:
            best = share, found
    if best is None and broken:
        raise broken[0]
    return best[1] if best else None


def _has_own_images(tree: Tree, names: tuple[str, ...]) -> bool:
    """Tell whether there are image folders of the split that the path of a JSON names."""
    own = next(filter(None, map(split_of, reversed(names))), ALL)
    return any(folder.images and split_rank(folder.names, own) == 0 for folder in tree.folders)


def _nearest(
    tree: Tree, folder: Folder, path: Path, split: str, rank: int, documents: Documents
) -> tuple[dict[str, Any], float, list[Folder]] | None:
    """Look for the images of a JSON in its own folder, then in the one above, up to the root."""
    for depth in range(len(folder.names), -1, -1):
        images = _image_folders(tree, folder.names[:depth], split, rank)
        document = documents.get(path) if images else None
        matched = _listed_folders(images, document) if document is not None else None
        if document is not None and matched is not None:
            return document, *matched
    return None


def _json_files(tree: Tree, split: str) -> list[tuple[Folder, str]]:
    """List the JSON files that may hold the boxes of a split, the likely ones first."""
    ranked = []
    for folder in tree.folders:
        for name in folder.with_suffix({".json"}):
            names = (*folder.names, Path(name).stem)
            said, rank = set(words(name)), task_rank(names, "det")
            if rank < 3:
                by_name = (bool(said & _UNLIKELY), not said & _LIKELY)
                ranked.append(((split_rank(names, split), rank, *by_name, len(names)), names, folder, name))
    return [(folder, name) for _, _, folder, name in sorted(ranked, key=lambda entry: entry[:2])]


def _image_folders(tree: Tree, top: tuple[str, ...], split: str, annotation_rank: int) -> list[Folder]:
    """Return the image folders of one split below `top`; shared ones only if the JSON names the split."""
    shared = annotation_rank < 2 or (split == ALL and annotation_rank == 2)
    folders = [folder for folder in tree.below(top) if folder.images]
    ranks = {folder.names: split_rank(folder.names, split) for folder in folders}
    fitting = [folder for folder in folders if ranks[folder.names] < (3 if shared else 2)]
    return sorted(fitting, key=lambda folder: (ranks[folder.names], len(folder.names), folder.names))


def _listed_folders(folders: list[Folder], document: dict[str, Any]) -> tuple[float, list[Folder]] | None:
    """Return the folders that hold images of the document, and which share of the files there it lists."""
    names = [file_parts(entry["file_name"])[-1:] for entry in document["images"]]
    listed = {Path(name).stem.lower() for (name,) in filter(None, names)}
    stems = {folder.names: {Path(name).stem.lower() for name in folder.images} for folder in folders}
    covered: set[str] = set()
    chosen = []
    for folder in sorted(folders, key=lambda folder: -len(stems[folder.names] & listed)):
        new = (stems[folder.names] & listed) - covered
        if new:
            covered |= new
            chosen.append(folder)
    return (len(covered) / sum(len(stems[folder.names]) for folder in chosen), chosen) if chosen else None


def _found_det(tree: Tree, split: str, path: Path, document: dict[str, Any], folders: list[Folder]) -> Found:
    images = tuple(folder.path / name for folder in folders for name in folder.images)
    places = listing(f"{_relative(tree, folder.path)}/" for folder in folders)
    layout = f"COCO JSON {_relative(tree, path)}, images in {places}"
    return Found("det", split, layout, path.parent, images, path, document, notes=_split_note(split))


def _relative(tree: Tree, path: Path) -> str:
    return path.relative_to(tree.root).as_posix()


def _split_note(split: str) -> tuple[str, ...]:
    return ("no split is named anywhere: every image belongs to the set",) if split == ALL else ()


def find_seg(tree: Tree, split: str) -> Found | None:
    """Take the mask folder that fits best and has images of the same stems near it."""
    ranked = []
    for folder in tree.folders:
        fits, rank = split_rank(folder.names, split), task_rank(folder.names, "seg")
        said = set(words(folder.names[-1])) if folder.names else set()
        if folder.masks and rank < 3 and not said & _OBJECTS:
            by_name = (bool(said & _DRAWN), role_of(folder.names) != "mask")
            ranked.append(((fits, rank, *by_name, len(folder.names), folder.names), folder))
    for _, masks in sorted(ranked, key=lambda entry: entry[0])[:_MAX_TRIED]:
        images = _images_of(tree, masks, split)
        if images is not None:
            found = _found_seg(tree, split, images, masks)
            if found is not None:
                return found
    return None


def _pairs(images: Folder, masks: Folder) -> dict[str, tuple[str, str]]:
    if images is masks:
        return pair_in_one_folder(images.images)
    # Many folders are tried: most share no stem, and that is quickly seen.
    apart = images.image_stems.isdisjoint(masks.mask_stems)
    return {} if apart else pair_names(images.images, masks.masks)


def _images_of(tree: Tree, masks: Folder, split: str) -> Folder | None:
    """Return the nearest folder whose images share stems with the masks, the one that shares most."""
    apart = role_of(masks.names) != "image"
    for depth in range(len(masks.names), -1, -1):
        options = []
        for folder in tree.below(masks.names[:depth]):
            fits = split_rank(folder.names, split)
            if fits < 3 and (folder is masks or (apart and role_of(folder.names) != "mask")):
                overlap = len(_pairs(folder, masks))
                if overlap:
                    options.append((-overlap, fits, folder.names, folder))
        if options:
            return min(options, key=lambda option: option[:3])[-1]
    return None


def _found_seg(tree: Tree, split: str, images: Folder, masks: Folder) -> Found | None:
    """Pair the files of two folders, as far as they belong to the split by folder name or split list."""
    image_rank, mask_rank = split_rank(images.names, split), split_rank(masks.names, split)
    pairs = _pairs(images, masks)
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(images.names, masks.names)))
    top = masks.names[:shared]
    if 3 in (image_rank, mask_rank) or not _are_masks(masks, pairs):
        return None
    layout = f"images in {_relative(tree, images.path)}/, masks in {_relative(tree, masks.path)}/"
    notes: tuple[str, ...] = _split_note(split)
    # A folder shared by all splits says nothing about this one: what has no partner belongs elsewhere.
    wanted = _image_stems(images, masks) if image_rank == min(image_rank, mask_rank) else set(pairs)
    if split != ALL and image_rank == mask_rank == 2:
        listed = next(split_lists(tree, top, split, set(pairs)), None)
        if listed is None:
            return None
        path, wanted = listed
        layout += f", listed in {_relative(tree, path)}"
    stems = sorted(pairs.keys() & wanted)
    notes += _lonely("images without mask (not used)", wanted - pairs.keys())
    if mask_rank < 2 or split == ALL:
        notes += _lonely("masks without image (not used)", masks.mask_stems - _image_stems(images, masks))
    found = tuple((images.path / pairs[stem][0], masks.path / pairs[stem][1]) for stem in stems)
    folder = tree.root.joinpath(*top)
    return Found("seg", split, layout, folder, tuple(image for image, _ in found), pairs=found, notes=notes)


def _are_masks(folder: Folder, pairs: dict[str, tuple[str, str]]) -> bool:
    """Tell by the name, else by the first files; the name first: a broken mask must not be passed over."""
    first = (folder.path / mask for _, mask in islice(pairs.values(), 3))
    return role_of(folder.names) == "mask" or all(map(looks_like_mask, first))


def _image_stems(images: Folder, masks: Folder) -> set[str]:
    """Return the stems of the images, masks in the same folder left out."""
    if images is not masks:
        return set(images.image_stems)
    beside = masks_in_one_folder(images.images)
    return {Path(name).stem for name in images.images if name not in beside}


def _lonely(what: str, stems: AbstractSet[str]) -> tuple[str, ...]:
    return (f"{len(stems)} {what}: {listing(sorted(stems))}",) if stems else ()


def find_cls(tree: Tree, split: str) -> Found | None:
    """Take the folder that holds most class folders: as its name says, then by known class names."""
    best: tuple[tuple[Any, ...], Folder, list[Path]] | None = None
    for folder in tree.folders:
        rank = task_rank(folder.names, "cls")
        inner = {child: _class_images(tree, child, split) for child in tree.children(folder)}
        classes = [child for child, images in inner.items() if images]
        known = sum(imagenette_name(child.path.name) is not None for child in classes)
        if rank == 3 or not classes or (len(classes) == 1 and not known and rank > 0):
            continue
        order = (split_rank(folder.names, split), rank, -known, -len(classes), folder.names)
        if best is None or order < best[0]:
            best = order, folder, [path for child in classes for path in inner[child]]
    if best is None:
        return None
    _, folder, paths = best
    children = tree.children(folder)
    empty = {child.path.name for child in children if not child.images and not child.folders}
    notes = (*_split_note(split), *_lonely("class folders without image (left out)", empty))
    layout = f"one folder per class in {_relative(tree, folder.path)}/"
    return Found("cls", split, layout, folder.path, tuple(paths), notes=notes)


def _class_images(tree: Tree, folder: Folder, split: str) -> list[Path]:
    """Return the images of one class; [] for a folder of a split, or of images with annotations.

    They lie in the class folder itself or, for a known class, one deeper (`tench/images`, `tench/val`).
    """
    if _is_structural(folder):
        return []
    inner = [folder]
    if not folder.images and imagenette_name(folder.path.name) is not None:
        inner = [child for child in tree.children(folder) if _is_structural(child)]
    # The name of the class says nothing about the split: think of "test tube".
    around, depth = folder.names[:-1], len(folder.names)
    ranks = [split_rank((*around, *place.names[depth:]), split) for place in inner]
    allowed = (2,) if split == ALL else (0, 1)
    fitting = [place for place, rank in zip(inner, ranks) if rank in allowed and not _is_annotated(place)]
    return [place.path / name for place in fitting for name in place.images]


def _is_structural(folder: Folder) -> bool:
    """Tell whether a name speaks of splits, tasks or files only, and so of no class."""
    said = set(words(folder.path.name))
    return said <= KNOWN_WORDS and bool(said - {"class", "classes"})


def _is_annotated(folder: Folder) -> bool:
    return bool(folder.with_suffix({".json"})) or bool(pair_in_one_folder(folder.images))
