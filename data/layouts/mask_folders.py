"""Finds segmentation sets: folders of masks, and the images of the same names near them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from data.images import JPEG_SUFFIXES, MASK_SUFFIXES, looks_like_mask
from data.layouts.alike import alike, common, parts
from data.layouts.near import images_near, ties
from data.layouts.tree import (
    ALL,
    DRAWN_WORDS,
    Folder,
    Found,
    Tree,
    counted,
    other_set,
    role_of,
    split_note,
    split_rank,
    words,
)
from data.layouts.voc import masks_in_one_folder, pair_by_rest, pair_in_one_folder, pair_names, split_lists

_MAX_TRIED, _MAX_UNNAMED = 200, 30
"""Candidates looked into, likely ones first, and those of unknown role: many folders must not take for ever."""
_MAX_NEAR = 500
"""Folders around masks that are looked through for their images."""
_MAX_OTHERS = 10
"""Candidates looked into for a second set, which is only mentioned."""
# SegmentationObject and COCO's panoptic masks number the objects: they look like masks of classes and are none.
_OBJECTS = frozenset({"object", "objects", "instance", "instances", "panoptic"})
_CLASSES = frozenset({"stuff", "sem", "semseg", "semantic"})
"""Words of folders that do hold classes, whatever else their names say."""


@dataclass(frozen=True)
class _FolderPair:
    """A folder of images, the folder of their masks (maybe the same), and the pairs: stem -> (image, mask).

    others: folders that hold images of these names too.
    """

    images: Folder
    masks: Folder
    pairs: dict[str, tuple[str, str]]
    others: tuple[Folder, ...] = ()

    @property
    def lonely_images(self) -> list[str]:
        """Stems of images that have no mask."""
        beside = masks_in_one_folder(self.images.images) if self.images is self.masks else frozenset()
        return sorted({Path(name).stem for name in self.images.images if name not in beside} - self.pairs.keys())

    @property
    def lonely_masks(self) -> list[str]:
        """Stems of masks that have no image."""
        names = self.masks.masks
        if self.images is self.masks:
            names = tuple(sorted(masks_in_one_folder(names)))
        paired = {mask for _, mask in self.pairs.values()}
        return sorted(Path(name).stem for name in names if name not in paired)


def find_seg(tree: Tree, split: str, reasons: list[str]) -> Found | None:
    """Take the mask folder that fits best and has images of the same names near it; another set is noted.

    `reasons` gets a sentence for what looked like masks and is none.
    """
    found: Found | None = None
    best = tried = unnamed = 0
    for fits, masks in _candidates(tree, split)[:_MAX_TRIED]:
        tried += found is not None
        unnamed += role_of(masks.names) != "mask"
        if unnamed > _MAX_UNNAMED or (found is not None and (fits != best or tried > _MAX_OTHERS)):
            break
        folders = _images_of(tree, masks, split) if _may_be_masks(masks) else None
        other = _found_seg(tree, split, folders) if folders is not None else None
        if other is None:
            reasons += _why_not(tree, masks) if fits < 3 else []
        elif found is None:
            found, best = other, fits
        elif not {mask for _, mask in other.pairs} & {path for pair in found.pairs for path in pair}:
            return replace(found, notes=(*found.notes, other_set(other.layout)))
    if found is None:
        reasons += _arrays(tree)
    return found


def _arrays(tree: Tree) -> list[str]:
    """Return a sentence about the first folder of arrays named as images are; [] if there is none."""
    stems = {PurePosixPath(name).stem for folder in tree.folders for name in folder.images}
    for folder in tree.folders:
        for name in folder.with_suffix({".npy", ".npz", ".mat"}):
            if PurePosixPath(name).stem in stems or role_of(folder.names) == "mask":
                save = "save each as PNG, `Image.fromarray(array.astype('uint8')).save('NAME.png')`"
                return [
                    f"{tree.relative(folder.path)}/ holds arrays, such as {name}, which are not read as masks: {save}"
                ]
    return []


def _candidates(tree: Tree, split: str) -> list[tuple[int, Folder]]:
    """Return the folders that may hold masks, likely ones first, and how they fit the split."""
    ranked = []
    for folder in tree.folders:
        if not folder.masks and not (role_of(folder.names) == "mask" and folder.images):
            continue
        fits, rank = split_rank(folder.names, split), tree.task_rank(folder.names, "seg")
        name_words = set(words(folder.names[-1])) if folder.names else set()
        if rank < 3 and (not name_words & _OBJECTS or name_words & _CLASSES):
            by_name = (bool(name_words & DRAWN_WORDS), role_of(folder.names) != "mask", len(folder.names), folder.names)
            ranked.append(((fits, rank), by_name, folder))
    return [(ranks[0], folder) for ranks, _, folder in sorted(ranked, key=lambda entry: entry[:2])]


def _why_not(tree: Tree, folder: Folder) -> list[str]:
    """Return a sentence about a folder called masks or the like that does not do; [] for any other folder."""
    where = f"{tree.relative(folder.path)}/"
    if role_of(folder.names[-2:]) != "mask":
        return []
    if not folder.masks:
        jpeg = bool(folder.with_suffix(JPEG_SUFFIXES))
        return [f"the masks in {where} are JPEG files, which blur the indices of classes: save them as PNG"] * jpeg
    for depth in range(len(folder.names) - 1, -1, -1):
        for near in islice(tree.below(folder.names[:depth]), _MAX_NEAR):
            if near.images and role_of(near.names) != "mask":
                images = f"{tree.relative(near.path)}/ holds {near.images[0]}"
                return [f"no image is named after the masks in {where}, such as {folder.masks[0]}: {images}"]
    return []


def _pairs(images: Folder, masks: Folder) -> dict[str, tuple[str, str]]:
    """Pair the files of two folders; by the parts of their names that differ only where a folder is called masks."""
    if images is masks:
        return pair_in_one_folder(images.images)
    pairs = pair_names(images.images, masks.masks)
    return pairs or (pair_by_rest(images.images, masks.masks) if role_of(masks.names) == "mask" else {})


def _images_of(tree: Tree, masks: Folder, split: str) -> _FolderPair | None:
    """Return the masks with the folder near them whose images have their names."""
    separate = role_of(masks.names) != "image"

    def shares(folder: Folder) -> dict[str, tuple[str, str]]:
        may_hold = folder is masks or (separate and role_of(folder.names) != "mask")
        return _pairs(folder, masks) if may_hold else {}

    folders = images_near(tree, masks, split, "seg", shares, _MAX_NEAR)
    return _FolderPair(folders[0], masks, _pairs(folders[0], masks), tuple(folders[1:])) if folders else None


def _found_seg(tree: Tree, split: str, folders: _FolderPair) -> Found | None:
    """Pair the files of two folders and of those like them, as far as names or a split list put them in the split."""
    images, masks = folders.images, folders.masks
    image_rank, mask_rank = split_rank(images.names, split), split_rank(masks.names, split)
    if 3 in (image_rank, mask_rank) or not _are_masks(masks, folders.pairs) or _are_both_drawn(folders):
        return None
    chosen = _together(tree, folders, split)
    top = common([folder.names for each in chosen for folder in (each.images, each.masks)])
    of_images, of_masks = ([getattr(p, kind) for p in chosen] for kind in ("images", "masks"))
    layout = f"images in {tree.listing(of_images)}, masks in {tree.listing(of_masks)}"
    stems = {stem for each in chosen for stem in each.pairs}
    # A folder shared by all splits shows nothing about this one: what has no partner belongs elsewhere.
    unpaired = [n for each in chosen for n in each.lonely_images] if image_rank == min(image_rank, mask_rank) else []
    if split != ALL and image_rank == mask_rank == 2:
        listed = next(split_lists(tree, top, split, stems), None)
        if listed is None:
            return None
        path, wanted = listed
        layout += f", listed in {tree.relative(path)}"
        stems, unpaired = stems & wanted, sorted(wanted - stems)
    notes = (*split_note(split), *ties(tree, folders.others), *counted("images without mask (not used)", unpaired))
    if mask_rank < 2 or split == ALL:
        alone = [name for each in chosen for name in each.lonely_masks]
        notes += counted("masks without image (not used)", alone)
    found = tuple(
        (each.images.path / image, each.masks.path / mask)
        for each in chosen
        for stem, (image, mask) in each.pairs.items()
        if stem in stems
    )
    folder = tree.root.joinpath(*top)
    return Found("seg", split, layout, folder, tuple(image for image, _ in found), pairs=found, notes=notes)


def _are_masks(folder: Folder, pairs: dict[str, tuple[str, str]]) -> bool:
    """Decide by the name, else by the first files; the name first: a broken mask must not be passed over."""
    first = (folder.path / mask for _, mask in islice(pairs.values(), 3))
    return role_of(folder.names) == "mask" or all(map(looks_like_mask, first))


def _are_both_drawn(folders: _FolderPair) -> bool:
    """Return whether it is open which of two folders holds masks, and the images look like masks too: drawn classes."""
    if folders.images is folders.masks or role_of(folders.masks.names) == "mask" or role_of(folders.images.names):
        return False
    first = [folders.images.path / image for image, _ in islice(folders.pairs.values(), 3)]
    return all(path.suffix.lower() in MASK_SUFFIXES and looks_like_mask(path) for path in first)


def _may_be_masks(folder: Folder) -> bool:
    """Return the same before any image is looked for, which takes longer."""
    first = sorted(masks_in_one_folder(folder.masks))[:3]
    return role_of(folder.names) == "mask" or all(looks_like_mask(folder.path / name) for name in first)


def _together(tree: Tree, folders: _FolderPair, split: str) -> list[_FolderPair]:
    """Return the pair of folders and those like it (`cam1/masks`, `cam2/masks`) that are parts of the same set."""
    first = (folders.images, folders.masks)
    ranks = [split_rank(folder.names, split) for folder in first]
    pairs = {folders.masks.names: folders.pairs}
    others = []
    for images, masks in alike(tree, first, "seg"):
        if masks.masks and images.images and [split_rank(f.names, split) for f in (images, masks)] == ranks:
            some = _pairs(images, masks)
            if some and _are_masks(masks, some):
                pairs[masks.names] = some
                others.append((images, masks))
    return [_FolderPair(images, masks, pairs[masks.names]) for images, masks in parts(tree, first, others)]
