"""Finds detection sets with a COCO JSON, by what the file lists and what lies near it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from data.errors import DataError, OtherDocument
from data.layouts.alike import common
from data.layouts.coco import load_document
from data.layouts.file_names import FileIndex, common_tail, listed_folders
from data.layouts.near import doubt, ties
from data.layouts.tree import (
    ALL,
    Folder,
    Found,
    Tree,
    other_set,
    split_note,
    split_of,
    split_rank,
    unlikely_photos,
    words,
)

_MAX_TRIED = 200
"""Candidates looked into, likely ones first: a folder with one JSON per image must not take for ever."""
_MAX_OTHERS, _OTHER_BYTES = 5, 20_000_000
"""Files read, and their largest size, in search of a second set, which is only mentioned."""

_LIKELY = frozenset({"instances", "annotations", "annotation", "labels", "bbox"})
_UNLIKELY = frozenset({"captions", "keypoints", "panoptic", "stuff", "info", "results", "predictions"})

_Place = tuple[bool, int, bool, int]
"""How unlikely a folder holds the images of a JSON: what its name says, files of other endings only, how far it is."""
_SURE = (False, 1, False)


class Documents:
    """The JSON files read during one search, each of them parsed once, and what did not fit about them."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, Any]] = {}
        self._indexed: dict[tuple[Path, ...], FileIndex] = {}
        self.errors: dict[Path, DataError] = {}
        self.unmatched: dict[Path, str] = {}

    def get(self, path: Path) -> dict[str, Any] | None:
        """Return the content of a COCO detection file, None (and an entry in `errors`) if it is none."""
        if path not in self._read and path not in self.errors:
            try:
                self._read[path] = load_document(path)
            except DataError as error:
                self.errors[path] = error
        return self._read.get(path)

    def index(self, folders: list[Folder]) -> FileIndex:
        """Return the index of the images in some folders."""
        key = tuple(folder.path for folder in folders)
        if key not in self._indexed:
            self._indexed[key] = FileIndex(folder.path / name for folder in folders for name in folder.images)
        return self._indexed[key]


def find_det(tree: Tree, split: str, documents: Documents) -> Found | None:
    """Take the JSON that fits the split best and lists most of the images that lie near it; another set is noted.

    Raises DataError if the only JSON that names the split is broken: another split must not hide that.
    """
    best: tuple[float, Found] | None = None
    broken: list[DataError] = []
    candidates = _json_files(tree, split)[:_MAX_TRIED]
    for position, (folder, name) in enumerate(candidates):
        names = (*folder.names, Path(name).stem)
        path, rank = folder.path / name, split_rank(names, split)
        # A JSON of another split serves only if that split has no images: then a folder was renamed.
        if rank == 3 and (best is not None or broken or _has_own_images(tree, names)):
            continue
        near = _nearest(tree, folder, path, split, rank, documents)
        error = documents.errors.get(path)
        if rank < 2 and error is not None and not isinstance(error, OtherDocument):
            broken.append(error)
        if near is None:
            continue
        found, share = near
        # Person keypoints come with boxes too, of one class.
        share *= 0.5 if any("keypoints" in annotation for annotation in found.document["annotations"][:1]) else 1.0
        if share > 0.5:
            return _with_others(tree, split, rank, found, candidates[position + 1 :], documents)
        if best is None or share > best[0]:
            best = share, found
    if best is None and broken:
        raise broken[0]
    return best[1] if best else None


def _with_others(
    tree: Tree, split: str, rank: int, found: Found, rest: list[tuple[Folder, str]], documents: Documents
) -> Found:
    """Note a further JSON that names the split as well and belongs to other images."""
    tried = 0
    for folder, name in rest:
        path = folder.path / name
        if tried == _MAX_OTHERS or split_rank((*folder.names, Path(name).stem), split) != rank:
            break
        if set(words(name)) & _UNLIKELY or path.stat().st_size > _OTHER_BYTES:
            continue
        tried += 1
        near = _nearest(tree, folder, path, split, rank, documents)
        if near is not None and set(near[0].images).isdisjoint(found.images):
            return replace(found, notes=(*found.notes, other_set(near[0].layout)))
    return found


def _has_own_images(tree: Tree, names: tuple[str, ...]) -> bool:
    """Return whether there are image folders of the split that the path of a JSON names."""
    own = next(filter(None, map(split_of, reversed(names))), ALL)
    return any(folder.images and split_rank(folder.names, own) == 0 for folder in tree.folders)


def _nearest(
    tree: Tree, folder: Folder, path: Path, split: str, rank: int, documents: Documents
) -> tuple[Found, float] | None:
    """Look for the images of a JSON in its own folder, then in the one above, up to the root.

    Folders of masks, of drawings or of another task, and files with other endings, serve where there is nothing else.
    Returns the set, and which share of the images there the JSON lists.
    """
    seen: Folder | None = None
    document: dict[str, Any] | None = None
    for depth in range(len(folder.names), -1, -1):
        images = _image_folders(tree, folder.names[:depth], path, split, rank)
        if document is None and images:
            document = _of_split(tree, documents.get(path), split)
        places = _places(tree, folder, images, document, documents) if document is not None else {}
        best = min(places.values(), default=None)
        if document is not None and best is not None and (best[:3] == _SURE or depth == 0):
            near = [other for other in images if places.get(other) == best]
            share, chosen = _listed_folders(near, document, documents)
            found = _found_det(tree, split, path, document, chosen)
            others = [other for other in near if other not in chosen]
            return replace(found, notes=(*found.notes, *ties(tree, others))), share
        seen = seen or (images[0] if images else None)
    whole = documents.get(path) if seen is not None else None
    if whole is not None and seen is not None:
        listed = next((str(entry["file_name"]) for entry in whole["images"]), "no image")
        where = tree.relative(seen.path)
        documents.unmatched[path] = f"{path} lists {listed}, but {where}/ holds {seen.images[0]}"
    return None


def _of_split(tree: Tree, document: dict[str, Any] | None, split: str) -> dict[str, Any] | None:
    """Return a document without the images that it lists in folders of other splits.

    They stay where it lists none of this split and their folders are not there: then a folder was renamed.
    """
    if document is None or split == ALL:
        return document
    parts = {name: listed_folders(name) for name in {str(entry["file_name"]) for entry in document["images"]}}
    ranks = {folders: split_rank(folders, split) for folders in set(parts.values())}
    mixed = min(ranks.values(), default=2) < 2
    others = {folders for folders, rank in ranks.items() if rank == 3 and (mixed or _are_there(tree, folders))}
    if not others:
        return document
    kept = [entry for entry in document["images"] if parts[str(entry["file_name"])] not in others]
    gone = {str(entry["id"]) for entry in document["images"]} - {str(entry["id"]) for entry in kept}
    annotations = [entry for entry in document["annotations"] if str(entry["image_id"]) not in gone]
    return {**document, "images": kept, "annotations": annotations}


def _are_there(tree: Tree, folders: tuple[str, ...]) -> bool:
    """Return whether the innermost folder of a split in a listed path is there, with images of this task."""
    own = folders[max(k for k, name in enumerate(folders) if split_of(name)) :]
    return any(
        folder.images and folder.names[-len(own) :] == own and tree.task_rank(folder.names, "det") < 2
        for folder in tree.folders
    )


def _places(
    tree: Tree, beside: Folder, folders: list[Folder], document: dict[str, Any], documents: Documents
) -> dict[Folder, _Place]:
    """Return the folders that hold images of a document in `beside`, and how unlikely they are meant.

    A folder whose whole path the document lists is meant, whatever it is called.
    """
    index, by_path = documents.index(folders), {folder.path: folder for folder in folders}
    depths = {folder.path: len(common([folder.names, beside.names])) for folder in folders}
    doubts = {folder.path: doubt(tree, folder.names, beside, "det") for folder in folders}
    places: dict[Folder, _Place] = {}
    for path, form, other_ending in chain.from_iterable(index.options(e["file_name"]) for e in document["images"]):
        folder, depth = by_path[path.parent], depths[path.parent]
        is_listed = 0 < len(folder.names) - depth <= common_tail(path, form)
        drawn, rank = _SURE[:2] if is_listed else doubts[folder.path]
        place = (drawn, rank, other_ending, -depth)
        places[folder] = min(place, places.get(folder, place))
    return places


def _json_files(tree: Tree, split: str) -> list[tuple[Folder, str]]:
    """List the JSON files that may hold the boxes of a split, the likely ones first."""
    ranked = []
    for folder in tree.folders:
        for name in folder.with_suffix({".json"}):
            names = (*folder.names, Path(name).stem)
            name_words, rank = set(words(name)), tree.task_rank(names, "det")
            if rank < 3:
                by_name = (bool(name_words & _UNLIKELY), not name_words & _LIKELY)
                ranked.append(((split_rank(names, split), rank, *by_name, len(names)), names, folder, name))
    return [(folder, name) for _, _, folder, name in sorted(ranked, key=lambda entry: entry[:2])]


def _image_folders(tree: Tree, top: tuple[str, ...], path: Path, split: str, annotation_rank: int) -> list[Folder]:
    """Return the image folders of one split below `top`, likely ones first; shared ones if the JSON names the split.

    `instances_val2017.json` is rather about `val2017` than about `val`.
    """
    shared = annotation_rank < 2 or (split == ALL and annotation_rank == 2)
    folders = [folder for folder in tree.below(top) if folder.images]
    ranks = {folder: split_rank(folder.names, split) for folder in folders}

    def order(folder: Folder) -> tuple[int, int, int, bool, int, tuple[str, ...]]:
        names, own = folder.names, path.stem.endswith(folder.names[-1:])
        return ranks[folder], unlikely_photos(names), tree.task_rank(names, "det"), not own, len(names), names

    return sorted((folder for folder in folders if ranks[folder] < (3 if shared else 2)), key=order)


def _listed_folders(
    folders: list[Folder], document: dict[str, Any], documents: Documents
) -> tuple[float, list[Folder]]:
    """Return which of the folders hold images of the document, and which share of the files there it lists.

    Where a name fits files in several folders, the folder that more names fit holds it.
    """
    index = documents.index(folders)
    options = [files for files in (index.find(entry["file_name"]) for entry in document["images"]) if files]
    counts = Counter(path.parent for files in options for path in files)
    listed = Counter(str(entry["file_name"]) for entry in document["images"])
    order = {folder.path: position for position, folder in enumerate(folders)}
    listed_files = {min(files, key=lambda path: (-counts[path.parent], order[path.parent])) for files in options}
    # A name that is listed twice means one file in each folder: which, only the reader can refuse to guess.
    twice = {path for name, count in listed.items() if count > 1 for path in index.find(name)}
    parents = {path.parent for path in listed_files | twice}
    chosen = [folder for folder in folders if folder.path in parents]
    return len(listed_files) / sum(len(folder.images) for folder in chosen), chosen


def _found_det(tree: Tree, split: str, path: Path, document: dict[str, Any], folders: list[Folder]) -> Found:
    images = tuple(folder.path / name for folder in folders for name in folder.images)
    layout = f"COCO JSON {tree.relative(path)}, images in {tree.listing(folders)}"
    return Found("det", split, layout, path.parent, images, path, document, notes=split_note(split))
