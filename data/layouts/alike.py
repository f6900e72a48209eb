"""Folders that are named as two given ones are: parts of one set, such as one camera or one tile each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from data.layouts.class_names import BOX_FILES, MASK_FILES, find_names
from data.layouts.tree import Folder, Tree, split_of
from data.types import Task

Names = tuple[str, ...]
FolderPair = tuple[Folder, Folder]
"""A folder of images and the folder of their annotations, which may be the same."""


def common(paths: Sequence[Names]) -> Names:
    """Return the names that all paths begin with."""
    return tuple(names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*paths)))


def alike(tree: Tree, pair: FolderPair, task: Task) -> Iterator[FolderPair]:
    """Yield other pairs that are named as `pair` is, within the same folder of a split; none that names another task.

    `images/cam2`, `masks/cam2` for `images/cam1`, `masks/cam1`; `Tile 2/images`, `Tile 2/masks` for those of Tile 1;
    for one folder of both the folders beside it.
    """
    images, marks = pair[0].names, pair[1].names
    start = len(common([images, marks]))
    fixed = max((k + 1 for k in range(start) if split_of(marks[k])), default=0)
    if images == marks:
        fixed = max(fixed - (fixed == len(marks)), len(marks) - 1, 0)
        yield from ((folder, folder) for folder in _others(tree, marks[:fixed], pair[1], task))
        return
    tail = len(common([images[start:][::-1], marks[start:][::-1]]))
    of_images, of_marks = images[start : len(images) - tail], marks[start : len(marks) - tail]
    for folder in _others(tree, marks[:fixed], pair[1], task):
        for k in range(fixed, len(folder.names) - len(of_marks) + 1):
            if folder.names[k : k + len(of_marks)] == of_marks:
                other = tree.by_names.get((*folder.names[:k], *of_images, *folder.names[k + len(of_marks) :]))
                if other is not None:
                    yield other, folder


def _others(tree: Tree, top: Names, first: Folder, task: Task) -> Iterator[Folder]:
    """Yield the folders below `top` but the first and those of another task."""
    for folder in tree.below(top):
        if folder is not first and tree.task_rank(folder.names, task) < 3:
            yield folder


def parts(tree: Tree, pair: FolderPair, others: Sequence[FolderPair]) -> list[FolderPair]:
    """Return `pair` and those of `others` that belong to the same set, ordered by name.

    What lies in the same two folders does. Folders above them are parts of one set if there are three or more, or if
    their names differ in numbers only (`Tile 1`, `Tile 2`), and none brings its own names of classes.
    """
    every = [pair, *others]
    groups = dict.fromkeys(map(_above, every))
    if len(groups) > 1:
        plain = {re.sub(r"\d+", "", "/".join(names)) for names in groups}
        named = find_names((tree.root.joinpath(*names) for names in groups), (*MASK_FILES, *BOX_FILES))
        if named is not None or (len(groups) < 3 and len(plain) > 1):
            every = [each for each in every if _above(each) == _above(pair)]
    return sorted(every, key=lambda each: each[1].names)


def _above(pair: FolderPair) -> Names:
    """Return the names above the folders of images and annotations; those of the folder itself if it holds both."""
    return pair[1].names if pair[0] is pair[1] else common([pair[0].names, pair[1].names])
