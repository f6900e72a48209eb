"""Reader of segmentation sets: images and masks paired by stem, split lists, class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data.classes import VOC_CLASSES, normal_name
from data.errors import DataError
from data.images import IMAGE_SUFFIXES, MASK_SUFFIXES, image_size
from data.layouts.tree import MASK_ENDING, Found, Tree, listing, mask_stem, split_of
from data.types import VOID, Record, TaskSet

_MAX_LIST_BYTES = 5_000_000


def pair_names(images: Sequence[str], masks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pair image and mask file names of two folders by stem: stem -> (image, mask), ordered by stem."""
    by_stem = {mask_stem(name): name for name in masks} | {PurePosixPath(name).stem: name for name in masks}
    stems = {PurePosixPath(name).stem: name for name in reversed(images)}
    return {stem: (stems[stem], by_stem[stem]) for stem in sorted(stems.keys() & by_stem.keys())}


def masks_in_one_folder(names: Sequence[str]) -> frozenset[str]:
    """Return which files beside images are masks: those like `X_mask.png`, else those like `X.png`."""
    lossless = [name for name in names if PurePosixPath(name).suffix.lower() in MASK_SUFFIXES]
    marked = [name for name in lossless if MASK_ENDING.search(PurePosixPath(name).stem)]
    return frozenset(marked or lossless)


def pair_in_one_folder(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pair `X.jpg` with `X.png`, or `X.png` with `X_mask.png`, in one folder."""
    masks = masks_in_one_folder(names)
    return pair_names([name for name in names if name not in masks], sorted(masks))


def read_list(path: Path) -> list[str]:
    """Return the stems in a split list: the first word of a line, which may be a path; [] for an odd file."""
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            return []
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    paths = [PurePosixPath(line.split()[0].replace("\\", "/")) for line in lines if line.strip()]
    return [path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name for path in paths]


def split_lists(tree: Tree, top: tuple[str, ...], split: str, stems: set[str]) -> Iterator[tuple[Path, set[str]]]:
    """Yield the lists below `top` that fit split and stems: VOC's folder first, `val60` before `val`."""
    ranked = []
    for folder in tree.below(top):
        for name in folder.with_suffix({".txt"}):
            if split_of(Path(name).stem) == split:
                plain = not any(character.isdigit() for character in name)
                ranked.append(("segmentation" not in map(str.lower, folder.names), plain, folder.path / name))
    for _, _, path in sorted(ranked):
        listed = set(read_list(path))
        if listed & stems:
            yield path, listed


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the names in `classes.txt` of the set's folder, background first; VOC's 21 without that file.

    Raises DataError if the file is empty, repeats a name, or names more than 255 classes.
    """
    # With {split}/images the set's folder is the one above.
    for place in (folder, folder.parent) if split_of(folder.name) else (folder,):
        path = place / "classes.txt"
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text; save it as UTF-8, one class name per line") from error
        names = tuple(line.strip() for line in lines if line.strip())
        if not 2 <= len(names) <= VOID or len({normal_name(name) for name in names}) < len(names):
            raise DataError(f"{path}: {len(names)} names; write 2 to {VOID} different ones, background first")
        return names
    return VOC_CLASSES


def read_masks(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a segmentation set: which mask belongs to which image; the masks themselves are read later.

    Raises DataError if mask and image differ in size, or if `classes` are others than those of the set.
    """
    own = read_class_names(found.folder)
    same = classes is None or [*map(normal_name, own)] == [*map(normal_name, classes)]
    if classes is not None and own != VOC_CLASSES and not same:
        raise DataError(
            f"{found.folder}: classes.txt names {listing(own)}, but {listing(classes)} are wanted; "
            "use masks and a classes.txt with the wanted classes"
        )
    records = []
    for image, mask in sorted(found.pairs, key=lambda pair: (pair[0].name, str(pair[0]))):
        size, mask_size = image_size(image), image_size(mask)
        if size != mask_size:
            raise DataError(
                f"{mask}: the mask has {mask_size[0]} x {mask_size[1]} pixels, its image {image.name} has "
                f"{size[0]} x {size[1]}; save the mask at the size of its image"
            )
        records.append(Record(image, mask=mask))
    return TaskSet("seg", found.split, found.layout, tuple(classes or own), tuple(records), notes=found.notes)
