"""Reader of segmentation sets: images and masks paired by name, split lists, what the masks hold."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from data.classes import VOC_CLASSES, NameIndex, normal_name, one_form
from data.errors import DataError
from data.images import IMAGE_SUFFIXES, MASK_SUFFIXES, holds_only, image_size, palette_reading
from data.layouts.alike import common
from data.layouts.class_names import BACKGROUND, IGNORED, ClassNames, find_names, for_classes
from data.layouts.tree import (
    IMAGE_WORDS,
    KNOWN_WORDS,
    MASK_ENDING,
    MASK_START,
    MASK_WORDS,
    Found,
    Tree,
    listing,
    mask_stem,
    split_of,
    words,
)
from data.types import VOID, MaskCoding, Record, TaskSet

_MAX_LIST_BYTES = 5_000_000
_PAIRED_WORDS = MASK_WORDS | IMAGE_WORDS | {"seg", "segmentation", "gtfine", "gtcoarse", "labelids", "matte"}
_LEFT = re.compile(r"[-_]leftimg8bit$", re.IGNORECASE)
"""How Cityscapes ends the names of its images."""
_DRAWN = re.compile(r"[-_](colou?r|instanceids|instances?|vis|overlay|preview)$", re.IGNORECASE)
"""Endings of pictures that lie beside masks and are none."""
_FIRST_NAME = re.compile(rf".+?(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})(?=\s|$)|\S+", re.IGNORECASE)
"""The first file of a line, which may hold blanks where its ending shows where it stops."""


@lru_cache(maxsize=100_000)
def stem_key(name: str) -> str:
    """Return the stem by which an image is paired: without its ending, in one Unicode form and one case."""
    return one_form(PurePosixPath(name).stem).casefold()


@lru_cache(maxsize=100_000)
def _mask_key(name: str) -> str:
    return one_form(mask_stem(name)).casefold()


@lru_cache(maxsize=100_000)
def _bare_key(name: str) -> str:
    """Return what is left of a stem without words such as mask and image: `1` of `img_1`, `image1` and `mask-1`."""
    parts = re.findall(r"[^\W\d_]+|\d+", one_form(_LEFT.sub("", PurePosixPath(name).stem)).casefold())
    return " ".join(part for part in parts if part not in _PAIRED_WORDS)


def _whole_key(name: str) -> str:
    """Return a name with its ending, as in `X.jpg.png`."""
    return one_form(name).casefold()


_WAYS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (stem_key, stem_key),
    (_whole_key, stem_key),
    (stem_key, _mask_key),
    (_whole_key, _mask_key),
    (_bare_key, _bare_key),
)
"""Keys of images and of masks that are compared, the surest first."""


def pair_names(images: Sequence[str], masks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pair image and mask file names of two folders: stem of the image -> (image, mask), ordered by stem.

    A mask has the name of its image, with the image's ending before its own (`X.jpg.png`) or with a word for masks
    before or behind it (`mask_X.png`, `X-gt.png`); or both have such words (`img_1.jpg`, `mask_1.png`).
    """
    pairs: dict[str, tuple[str, str]] = {}
    free_images, free_masks = list(images), [name for name in masks if not _DRAWN.search(PurePosixPath(name).stem)]
    for image_key, mask_key in _WAYS:
        by_key = _unique(free_masks, mask_key, first=mask_key is not _bare_key)
        for key, image in _unique(free_images, image_key, first=image_key is not _bare_key).items():
            if key in by_key:
                pairs[PurePosixPath(image).stem] = (image, by_key[key])
        used = {mask for _, mask in pairs.values()}
        free_images = [name for name in free_images if PurePosixPath(name).stem not in pairs]
        free_masks = [name for name in free_masks if name not in used]
        if not free_images or not free_masks:
            break
    return dict(sorted(pairs.items()))


def _unique(names: Iterable[str], key_of: Callable[[str], str], first: bool) -> dict[str, str]:
    """Return key -> name; of several names with one key the first, or none of them."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in names:
        grouped[key_of(name)].append(name)
    return {key: some[0] for key, some in grouped.items() if first or len(some) == 1}


def pair_by_rest(images: Sequence[str], masks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pair names by what is left without the beginning and the end that all images, and all masks, share.

    `a_sat.jpg`, `b_sat.jpg` and `a_anno.png`, `b_anno.png` are `a` and `b`.
    """
    of_images, of_masks = (_unique(names, _rest_key(names), first=False) for names in (images, masks))
    shared = sorted(of_images.keys() & of_masks.keys() - {""})
    return {PurePosixPath(of_images[key]).stem: (of_images[key], of_masks[key]) for key in shared}


def _rest_key(names: Sequence[str]) -> Callable[[str], str]:
    """Return what cuts the shared beginning and end off a stem, up to a mark such as `_`: never within a number."""
    stems = [stem_key(name) for name in names]
    start = re.match(r".*[-_. ]", "".join(common([tuple(stem) for stem in stems])))
    end = re.search(r"[-_. ].*", "".join(common([tuple(stem[::-1]) for stem in stems]))[::-1])
    first, last = (len(found[0]) if found else 0 for found in (start, end))
    return lambda name: stem_key(name)[first : max(first, len(stem_key(name)) - last)]


def masks_in_one_folder(names: Sequence[str]) -> frozenset[str]:
    """Return which files beside images are masks: those like `X_mask.png` or `mask_X.png`, else those like `X.png`.

    Without an image called `X`, files like `X_mask.png` are masks where they are half of all.
    """
    lossless = [name for name in names if PurePosixPath(name).suffix.lower() in MASK_SUFFIXES]
    marked = [name for name in lossless if _is_marked(name)]
    others = set(names).difference(marked)
    stems, bare = {stem_key(name) for name in names}, {_bare_key(name) for name in others} - {""}
    partnered = [name for name in marked if _mask_key(name) in stems or _bare_key(name) in bare]
    return frozenset(partnered or (marked if 2 * len(marked) == len(names) else lossless))


def _is_marked(name: str) -> bool:
    stem = PurePosixPath(name).stem
    return MASK_ENDING.search(stem) is not None or MASK_START.match(stem) is not None


def pair_in_one_folder(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pair `X.jpg` with `X.png`, or `X.png` or `X_sat.png` with `X_mask.png`, in one folder."""
    masks = sorted(masks_in_one_folder(names))
    images = sorted(set(names).difference(masks))
    return pair_names(images, masks) or pair_by_rest(images, list(filter(_is_marked, masks)))


def read_list(path: Path) -> list[str]:
    """Return the stems in a split list: the first word of a line, which may be a path; [] for an odd file."""
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            return []
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    names = (_FIRST_NAME.match(line.strip()) for line in lines)
    paths = [PurePosixPath(found[0].replace("\\", "/")) for found in names if found]
    return [path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name for path in paths]


def split_lists(
    tree: Tree, top: tuple[str, ...], split: str, stems: set[str], folder_name: str = "segmentation"
) -> Iterator[tuple[Path, set[str]]]:
    """Yield the lists below `top` that fit split and stems: VOC's folder first, `val60` before `val`.

    One that says more than the split comes last: VOC's `dog_val` lists all images and whether they show a dog.
    """
    ranked = []
    for folder in tree.below(top):
        for name in folder.with_suffix({".txt"}):
            if split_of(Path(name).stem) == split:
                named = not KNOWN_WORDS.issuperset(words(Path(name).stem))
                plain = not any(character.isdigit() for character in name)
                ranked.append((folder_name not in map(str.lower, folder.names), named, plain, folder.path / name))
    for *_, path in sorted(ranked):
        listed = set(read_list(path))
        if listed & stems:
            yield path, listed


def read_class_names(found: Found) -> ClassNames:
    """Return the names that a file beside the masks, the images or in a folder around both gives; VOC's 21 without one.

    Raises DataError for a `classes.txt` that is empty, repeats a name, or names more than 255 classes.
    """
    top = found.folder
    folders: list[Path] = []
    for start in {path.parent: None for pair in found.pairs[:1] for path in reversed(pair)}:
        folders += [folder for folder in (start, *start.parents) if top in folder.parents]
    # With {split}/images the set's folder is the one above.
    folders += [top, top.parent] if split_of(top.name) else [top]
    return find_names(folders) or ClassNames(VOC_CLASSES)


def read_masks(found: Found, classes: Sequence[str] | None = None) -> TaskSet:
    """Read a segmentation set: which mask belongs to which image; the masks themselves are read later.

    With `classes`, the set's own are mapped to them by name. Raises DataError if mask and image differ in size, if
    nothing but background is labelled, or if a class of the set is none of `classes`.
    """
    own, notes = _with_255(found, read_class_names(found))
    own, said = _with_background(own, classes or ())
    names, coding = tuple(classes or own.names), own.coding
    which = "those of Pascal VOC" if names == VOC_CLASSES else f"{listing(names)}, in this order,"
    assumed = "" if own.source else f"; no file names the classes: {which} are assumed"
    notes += said or _without_background(own)
    if classes is not None and own.source and [*map(normal_name, own.names)] != [*map(normal_name, classes)]:
        coding = for_classes(own, _positions(found, own, classes))
    plain = coding == MaskCoding()
    records = []
    for image, mask in sorted(found.pairs, key=lambda pair: (pair[0].name, str(pair[0]))):
        size, mask_size = image_size(image), image_size(mask)
        if size != mask_size:
            raise DataError(
                f"{mask}: the mask has {mask_size[0]} x {mask_size[1]} pixels, its image {image.name} has "
                f"{size[0]} x {size[1]}; save the mask at the size of its image"
            )
        records.append(Record(image, mask=mask, coding=None if plain else coding))
    notes += _other_palettes(records, len(names))
    return TaskSet("seg", found.split, found.layout + assumed, names, tuple(records), notes=(*found.notes, *notes))


def _other_palettes(records: Sequence[Record], num_classes: int) -> tuple[str, ...]:
    """Notes on masks of which something else than the index of their palette counts."""
    read = (palette_reading(record.mask, num_classes, record.coding) for record in records if record.mask)
    counts = Counter(filter(None, read))
    text = "{} masks have palettes in another order: the {} count, not the indices"
    return tuple(text.format(n, what) for what, n in counts.items())


def _with_background(own: ClassNames, classes: Sequence[str]) -> tuple[ClassNames, tuple[str, ...]]:
    """Put the background before the names of a file that lists all the others of the wanted `classes`, with a note."""
    others = [*map(normal_name, own.names)] == [*map(normal_name, classes[1:])]
    if not own.source or own.coding != MaskCoding() or not others or normal_name(classes[0]) not in BACKGROUND:
        return own, ()
    return replace(own, names=tuple(classes)), (f"{own.source}: lists no background; 0 in the masks is read as it",)


def _without_background(own: ClassNames) -> tuple[str, ...]:
    """A note where the names in a file begin with another class than the background, whose value is usually 0."""
    if not own.source or own.coding != MaskCoding() or normal_name(own.names[0]) in BACKGROUND | IGNORED:
        return ()
    remedy = "if 0 is no class, list it there as background"
    return (f"{own.source}: {own.names[0]} comes first, so 0 in the masks is {own.names[0]}; {remedy}",)


def _positions(found: Found, own: ClassNames, classes: Sequence[str]) -> list[int]:
    """Return the position of every class of the set among `classes`. Raises DataError if one has none."""
    index = NameIndex(classes)
    positions = [index(name) for name in own.names]
    others = [position for place, position in enumerate(positions) if position != place]
    if len(own.names) == len(classes) and 2 * len(others) <= len(classes) and all(p is None for p in others):
        return list(range(len(classes)))  # the same classes in the same order, some of them spelled in another way
    positions = [VOID if normal_name(n) in IGNORED and p is None else p for n, p in zip(own.names, positions)]
    unknown = [name for name, position in zip(own.names, positions) if position is None]
    if unknown:
        raise DataError(
            f"{found.folder}: {own.source.name if own.source else ''} names {listing(own.names)}, "
            f"but {listing(classes)} are wanted ({listing(unknown)}: unknown); "
            "use masks and a classes.txt with the wanted classes"
        )
    return [position for position in positions if position is not None]


def _with_255(found: Found, own: ClassNames) -> tuple[ClassNames, tuple[str, ...]]:
    """Decide what 255 means where masks hold nothing but 0 and 255: the one class beside the background, or an error.

    Masks are read up to the first that holds another value.
    """
    values = own.coding.values
    if own.coding.colours or (values is not None and VOID in values):
        return own, ()
    held: set[int] = set()
    for _, mask in found.pairs:
        these = holds_only(mask, (0, VOID))
        if these is None:
            return own, ()
        held |= these
    if VOID not in held:
        return own, ("nothing but background is labelled: all masks hold only 0",) if held else ()
    if len(own.names) == 2 and own.source:
        coding = replace(own.coding, values={0: 0, 1: 1, VOID: 1})
        note = f"all masks hold only 0 and 255: 255 is read as {own.names[1]}"
        return replace(own, coding=coding), (note,)
    some = f"{found.pairs[0][1]}: all {len(found.pairs)} masks of this set hold only 0 and 255"
    raise DataError(
        f"{some}, and 255 is void: nothing but background is labelled; if 255 is a class, write a file _classes.csv "
        f"into {found.folder} with the lines `0, background` and `255, NAME`"
    )
