"""What lies below a folder, and what the names of folders and files show of task and split."""

from __future__ import annotations

import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import DataError
from data.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from data.layouts.units import Units
from data.types import Task

ALL = "all"
"""The split of a set that has no split anywhere: every image."""
MAX_DEPTH = 8
MAX_FOLDERS = 100_000
_NEVER = frozenset({"__pycache__", "__macosx", "node_modules"})
# Drawn sets never stand in for real ones: they are found only when they are the root themselves.
# The others are folders of this repository. With images in them they are classes of these names.
_OURS = frozenset({"synthetic", "manifests", "runs", "wandb"})

SPLIT_WORDS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "minival"), "val"),
    **dict.fromkeys(("test", "testing", "hidden"), "test"),
}
TASK_WORDS: dict[str, Task] = {
    "det": "det", "detect": "det", "detection": "det", "detections": "det",
    "seg": "seg", "segm": "seg", "segment": "seg", "segmentation": "seg", "semantic": "seg",
    "cls": "cls", "clf": "cls", "classif": "cls", "classify": "cls", "classification": "cls",
}  # fmt: skip
SET_WORDS: dict[str, Task] = {
    "coco": "det", "voc": "seg", "pascal": "seg", "imagenet": "cls", "imagenette": "cls", "imagewoof": "cls",
}  # fmt: skip
MASK_WORDS = frozenset({
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "truth",
    "target", "targets", "segmentationclass", "gtfine", "gtcoarse",
})  # fmt: skip
IMAGE_WORDS = frozenset({
    "image", "images", "img", "imgs", "jpeg", "jpegs", "jpg", "photo", "photos", "picture", "pictures",
    "pics", "rgb", "input", "inputs",
})  # fmt: skip
DRAWN_WORDS = frozenset({"vis", "color", "colour", "overlay", "preview"})
"""Names of folders of pictures with predictions or annotations drawn into them."""
_OTHER_WORDS = frozenset({
    "mini", "tiny", "small", "ms", "sub", "set", "sets", "subset", "data", "dataset", "datasets", "task",
    "tasks", "devkit", "class", "classes", "object", "objects", "obj", "instance", "instances", "ground",
    "sem", "trainval", "raw", "color", "colour", "vis", "png", "bbox", "boxes", "sample", "samples",
})  # fmt: skip
KNOWN_WORDS = frozenset({*SPLIT_WORDS, *TASK_WORDS, *SET_WORDS, *MASK_WORDS, *IMAGE_WORDS, *_OTHER_WORDS})
_WORD = "|".join(sorted(KNOWN_WORDS, key=len, reverse=True))
_KNOWN, _ONLY_KNOWN = re.compile(_WORD), re.compile(f"(?:{_WORD})+")
_MASK_MARK = "mask|masks|label|labels|labelids|labeltrainids|seg|segm|segmentation|gt|annotation|annotations|matte"
MASK_ENDING = re.compile(rf"[-_. ]({_MASK_MARK}|l)$", re.IGNORECASE)
MASK_START = re.compile(rf"^({_MASK_MARK})[-_. ]", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Folder:
    """One folder: its path, the names that lead to it from the root, and what it holds (sorted)."""

    path: Path
    names: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[str, ...]

    @cached_property
    def images(self) -> tuple[str, ...]:
        """Names of the image files, masks among them."""
        return self.with_suffix(IMAGE_SUFFIXES)

    @cached_property
    def masks(self) -> tuple[str, ...]:
        """Names of the files that could be masks."""
        return self.with_suffix(MASK_SUFFIXES)

    def with_suffix(self, suffixes: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the files that end in one of `suffixes`, whatever their case."""
        return tuple(name for name in self.files if os.path.splitext(name)[1].lower() in suffixes)


@dataclass(frozen=True)
class Tree:
    """All folders below a root, the root itself first, shallow ones before deep ones."""

    root: Path
    folders: tuple[Folder, ...]
    complete: bool = True
    lenient: bool = False

    @cached_property
    def by_names(self) -> dict[tuple[str, ...], Folder]:
        """The folders by the names that lead to them."""
        return {folder.names: folder for folder in self.folders}

    @cached_property
    def _inside(self) -> dict[tuple[str, ...], list[Folder]]:
        inside: dict[tuple[str, ...], list[Folder]] = defaultdict(list)
        for folder in self.folders:
            for depth in range(len(folder.names) + 1):
                inside[folder.names[:depth]].append(folder)
        return inside

    def children(self, folder: Folder) -> list[Folder]:
        """Return the folders directly in `folder`."""
        names = ((*folder.names, name) for name in folder.folders)
        return [self.by_names[child] for child in names if child in self.by_names]

    def below(self, names: tuple[str, ...]) -> list[Folder]:
        """Return the folder that `names` lead to and all folders in it."""
        return self._inside.get(names, [])

    def task_rank(self, names: Sequence[str], task: Task) -> int:
        """Return how a path fits a task; to a lenient search a name of another task is no obstacle."""
        rank = task_rank(names, task)
        return min(rank, 2) if self.lenient else rank

    def relative(self, path: Path) -> str:
        """Return a path below the root as it is shown."""
        return path.relative_to(self.root).as_posix()

    def listing(self, folders: Iterable[Folder]) -> str:
        """Return the first few folders as one phrase."""
        return listing(f"{self.relative(folder.path)}/" for folder in folders)


@dataclass(frozen=True)
class Found:
    """Where one split of one task lies.

    images: the image files; annotation, document: the COCO file and its content (det); pairs: image and mask
    (seg), image and file of its boxes (det, YOLO and VOC), then `annotation` names the classes or holds those files;
    units: what the numbers of boxes are, None: guessed; folder: the folder that holds the set, for cls the one
    that holds the class folders.
    """

    task: Task
    split: str
    layout: str
    folder: Path
    images: tuple[Path, ...]
    annotation: Path | None = None
    document: dict[str, Any] = field(default_factory=dict, repr=False)
    pairs: tuple[tuple[Path, Path], ...] = ()
    units: Units | None = None
    notes: tuple[str, ...] = ()


def mask_stem(name: str) -> str:
    """Return the stem by which a mask file is paired: `X` for `X.png`, `X_mask.png`, `X-gt.png`, `mask_X.png`."""
    stem = PurePosixPath(name).stem
    ended = MASK_ENDING.sub("", stem)
    return ended if ended != stem else MASK_START.sub("", stem)


def scan(root: Path) -> Tree:
    """List the folders below `root`, hidden ones left out: at most 8 deep and 100,000 in all.

    Links are followed, but not back into a folder that leads to them.
    Raises DataError if `root` is no readable folder.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(
            f"{root}: {what}; check the path (the mini sets come from `python -m data.download --root data`)"
        )
    folders: list[Folder] = []
    # Each entry carries the real paths of its ancestors: a link back to one of them would never end.
    queue: deque[tuple[Path, tuple[str, ...], frozenset[str]]] = deque()
    queue.append((root, (), frozenset({os.path.realpath(root)})))
    while queue and len(folders) < MAX_FOLDERS:
        path, names, ancestors = queue.popleft()
        inner, files = _entries(path)
        folder = Folder(path, names, files, inner)
        if names and names[-1].lower() in _OURS and not folder.images:
            continue
        folders.append(folder)
        for name in inner if len(names) < MAX_DEPTH else ():
            real = os.path.realpath(path / name)
            if real not in ancestors:
                queue.append((path / name, (*names, name), ancestors | {real}))
    return Tree(root, tuple(folders), complete=not queue)


def _entries(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sorted names of the folders and files in `path`; an unreadable folder counts as empty."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _NEVER:
                    continue
                # os.path.isdir answers for a link to itself, where entry.is_dir raises.
                folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                (folders if folder else files).append(entry.name)
    except OSError:
        pass
    return tuple(sorted(folders)), tuple(sorted(files))


def words(name: str) -> list[str]:
    """Split a name into lower-case words, known ones also where nothing parts them (`minicocodet`)."""
    return list(_words(name))


@lru_cache(maxsize=200_000)
def _words(name: str) -> tuple[str, ...]:
    result: list[str] = []
    for run in re.findall(r"[^\W\d_]{2,}", name.lower()):
        result += _KNOWN.findall(run) if _ONLY_KNOWN.fullmatch(run) else [run]
    return tuple(result)


@lru_cache(maxsize=200_000)
def split_of(name: str) -> str | None:
    """Return the split that a name holds; None if it names none or several (`train_val`)."""
    named = {SPLIT_WORDS[word] for word in words(name) if word in SPLIT_WORDS}
    return named.pop() if len(named) == 1 else None


def split_rank(names: Sequence[str], split: str) -> int:
    """Return how a path fits a split: 0 its innermost split is it, 1 an outer one is, 2 none, 3 others."""
    splits = [found for found in map(split_of, names) if found]
    if not splits:
        return 2
    return 0 if splits[-1] == split else 1 if split in splits else 3


def task_rank(names: Sequence[str], task: Task) -> int:
    """Return how a path fits a task: 0 it names it, 1 names none, 2 hints at another, 3 names another task.

    A name that holds other words too (`car-parts-segmentation`) is one that somebody gave, and no more than a hint.
    """
    for vocabulary, penalty in ((TASK_WORDS, 3), (SET_WORDS, 2)):
        for name in reversed(names):
            found = _words(name)
            tasks = {vocabulary[word] for word in found if word in vocabulary}
            if len(tasks) == 1:
                return 0 if task in tasks else penalty if KNOWN_WORDS.issuperset(found) else 2
    return 1


def split_note(split: str) -> tuple[str, ...]:
    """Return a note about a set without splits."""
    return ("no split is named anywhere: every image belongs to the set",) if split == ALL else ()


def other_set(layout: str) -> str:
    """Return a note about a second set that a search finds."""
    return f"there is another set, not used ({layout}); give its own folder as the root to use it"


def role_of(names: Sequence[str]) -> str | None:
    """Return "mask" or "image", by the innermost folder name that holds either word."""
    for name in reversed(names):
        name_words = set(_words(name))
        if name_words & MASK_WORDS:
            return "mask"
        if name_words & IMAGE_WORDS:
            return "image"
    return None


def unlikely_photos(names: Sequence[str]) -> int:
    """Return how little a path promises photographs: 0 it says images, 1 it says nothing, 2 masks or drawings."""
    if role_of(names) == "mask" or (names and DRAWN_WORDS.intersection(_words(names[-1]))):
        return 2
    return 0 if role_of(names) == "image" else 1


def counted(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a note about how many names are `what`, and the first few of them; none if there are none."""
    return (f"{len(names)} {what}: {listing(names)}",) if names else ()


def listing(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names as one phrase: `a, b, c and 4 more`."""
    every = list(names)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
