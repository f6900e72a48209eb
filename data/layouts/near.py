"""Which folder near a file of annotations holds its photographs, where file names fit several."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from itertools import islice

from data.layouts.alike import common
from data.layouts.tree import Folder, Tree, split_rank, unlikely_photos
from data.types import Task


def doubt(tree: Tree, names: Sequence[str], beside: Folder, task: Task) -> tuple[bool, int]:
    """Return how doubtful it is that a folder holds the photographs of annotations in `beside`; smaller is better.

    Masks or drawings are worst, then comes another task's name. What both folders lie in says nothing about either.
    """
    own = tuple(names[len(common([tuple(names), beside.names])) :] or names[-1:])
    return unlikely_photos(own) == 2, max(tree.task_rank(own, task), 1)


def images_near(
    tree: Tree, beside: Folder, split: str, task: Task, shares: Callable[[Folder], Sized], limit: int
) -> list[Folder]:
    """Return the folder of the photographs that files in `beside` belong to, and those that have as many, as near.

    `shares` returns the names that the images of a folder share with the files. The nearest folder with any is taken,
    of several the one with most; one of masks, of drawings or of another task only where there is no other.
    """
    options: list[tuple[tuple[int, ...], tuple[int, int], Folder]] = []
    seen: set[tuple[str, ...]] = set()
    for depth in range(len(beside.names), -1, -1):
        for folder in islice(tree.below(beside.names[:depth]), limit):
            if folder.names in seen or not folder.images:
                continue
            seen.add(folder.names)
            fits = split_rank(folder.names, split)
            count = len(shares(folder)) if fits < 3 else 0
            if count:
                near = (-depth, folder is not beside, -count, fits, -_same_end(folder, beside))
                likely = unlikely_photos(folder.names), tree.task_rank(folder.names, task)
                options.append(((*doubt(tree, folder.names, beside, task), *near), likely, folder))
        if any(sure[:2] == (False, 1) for sure, *_ in options):
            break
    options.sort(key=lambda option: (*option[:2], option[2].names))
    return [folder for sure, _, folder in options if sure == options[0][0]]


def _same_end(first: Folder, second: Folder) -> int:
    """Count the names that two paths have in common at their end: `images/cam1` belongs to `masks/cam1`."""
    return len(common([first.names[::-1], second.names[::-1]]))


def ties(tree: Tree, others: Sequence[Folder]) -> tuple[str, ...]:
    """Return a note about folders whose images have the names of those that are taken."""
    return (f"images of the same names lie in {tree.listing(others)} too (not used)",) if others else ()
