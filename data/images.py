"""Decoding of image and mask files, safe against broken, huge and unusual files."""

from __future__ import annotations

import importlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.classes import voc_palette
from data.errors import DataError
from data.pixels import to_rgb
from data.types import VOID, MaskCoding

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
MASK_SUFFIXES = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"})
"""Formats that can be lossless: JPEG would blur the indices."""
IMAGE_SUFFIXES = JPEG_SUFFIXES | MASK_SUFFIXES | {".avif", ".heic", ".heif"}

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
"""The only decoders that are used, whatever a file is called: others run programs (EPS) or are seldom tried."""
_NEEDED = {
    ".avif": ("AVIF", "Pillow 11.3 or newer (`pip install -U pillow`)"),
    ".heic": ("HEIF", "pillow-heif (`pip install pillow-heif`)"),
    ".heif": ("HEIF", "pillow-heif (`pip install pillow-heif`)"),
}
"""Endings of formats that not every installation reads: format, and what to install."""
MAX_PIXELS = 64_000_000
_ORIENTATION_TAG = 274
_INDEX_MODES = frozenset({"P", "L", "1", "I", "I;16", "I;16B", "I;16L", "LA", "PA"})


@cache
def decoders() -> tuple[str, ...]:
    """Return those of `FORMATS` that this installation reads; HEIF comes with the package pillow-heif."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _opened(path: Path, file: BinaryIO | None = None) -> Iterator[Image.Image]:
    """Open an image, header only; whatever goes wrong inside becomes a DataError that names the file."""
    try:
        with Image.open(file or path, formats=decoders()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels")
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image; download the set again or check the path") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "far too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        kind, package = _NEEDED.get(path.suffix.lower(), ("JPEG", ""))
        if kind not in decoders():
            raise DataError(f"{path}: {kind} needs {package}; or save the image as JPEG or PNG") from error
        reason = "no image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: cannot be decoded ({reason}); delete it or download it again") from error


def _too_large(path: Path, what: str) -> DataError:
    limit = MAX_PIXELS // 1_000_000
    return DataError(f"{path}: {what}, above the limit of {limit} megapixels; scale it down or remove it")


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as stored (no EXIF rotation); reads the header only.

    Raises DataError if the file is missing, no image, or above 64 megapixels.
    """
    with _opened(path) as image:
        return image.size


def image_orientation(path: Path) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 where the file has none or another value."""
    with _opened(path) as image:
        orientation = image.getexif().get(_ORIENTATION_TAG)
        return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def read_image(path: Path, file: BinaryIO | None = None) -> Image.Image:
    """Decode any image to 8-bit RGB as stored: an EXIF rotation is never applied, as in COCO's annotations.

    Greyscale, palette, CMYK and floats are converted; 16 bits keep their upper 8; alpha is dropped; of
    an animation the first frame counts. `file` is the content where `path` only names it, inside an archive.
    Raises DataError if the file is missing, truncated, no image, or above 64 megapixels.
    """
    with _opened(path, file) as image:
        image.load()
        return to_rgb(image)


def read_mask(
    path: Path, num_classes: int, size: tuple[int, int] | None = None, coding: MaskCoding | None = None
) -> np.ndarray:
    """Decode a segmentation mask to class indices: uint8 (H, W), values below `num_classes` or 255 (void).

    Palette, greyscale, 1-bit and 16-bit files hold the index; RGB files are read by the VOC colour map; `coding`
    replaces that. Palettes in another order are read as `palette_reading` says. `size` is the width and height of the
    image. Raises DataError if the mask has another size, if a value or colour stands for no class, or if the file
    cannot be decoded.
    """
    coding = coding or MaskCoding()
    with _opened(path) as image:
        if size is not None and image.size != size:
            raise DataError(
                f"{path}: the mask has {image.size[0]} x {image.size[1]} pixels, "
                f"its image {size[0]} x {size[1]}; save the mask at the size of its image"
            )
        image.load()
    meant = _as_meant(image, num_classes, coding) if image.mode == "P" else image
    if meant.mode == "1":
        return _checked(path, np.asarray(meant, dtype=np.uint8), num_classes)
    if meant.mode in _INDEX_MODES:
        values = np.asarray(meant)
        values = values[..., 0] if values.ndim == 3 else values
        return _checked(path, values, num_classes, coding.values)
    if meant.mode in ("RGB", "RGBA"):
        return _by_colour(path, np.asarray(meant)[..., :3], num_classes, coding)
    raise DataError(f"{path}: a mask of mode {meant.mode}; save a palette PNG whose index is the class")


def palette_reading(path: Path, num_classes: int, coding: MaskCoding | None = None) -> str:
    """Return what counts in a palette mask where its index does not, "colours" or "grey values"; empty for all others.

    Raises DataError if the file cannot be decoded.
    """
    with _opened(path) as image:
        if image.mode != "P":
            return ""
        image.load()
    return {"RGB": "colours", "L": "grey values"}.get(_as_meant(image, num_classes, coding or MaskCoding()).mode, "")


def _as_meant(image: Image.Image, num_classes: int, coding: MaskCoding) -> Image.Image:
    """Return a palette image, as RGB or L where a program has put its palette into another order.

    So it is where most colours in use are those that `coding` gives to classes, or where the whole palette is made of
    colours (or of grey values) of classes, at other indices than theirs; what is not in use may be grey. Black and
    white alone can be any two classes: there, as in any other palette, the index counts.
    """
    numbers = image.getpalette("RGB") or []
    palette = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    in_use = [index for index, pixels in enumerate(image.histogram()) if pixels]
    used = {index: palette[index] for index in in_use if index < len(palette)}
    known = _colours(num_classes, coding)
    values = {VOID: VOID, **(coding.values or {index: index for index in range(num_classes)})}
    one_each = all(index in used and palette.index(used[index]) == index for index in in_use)
    if coding.colours:
        coloured = 2 * sum(colour in known for colour in used.values()) > len(used)
    else:
        coloured = one_each and known.keys() >= {*used.values(), *(c for c in palette if len(set(c)) > 1)}
    if coloured and any(known.get(colour) != values.get(index) for index, colour in used.items()):
        return image.convert("RGB")
    greys = {(value, value, value) for value in values}
    grey = one_each and greys.issuperset(palette) and not {0, VOID}.issuperset(c[0] for c in used.values())
    return image.convert("L") if grey and any(c[0] != index for index, c in used.items()) else image


def _checked(path: Path, values: np.ndarray, num_classes: int, meaning: Mapping[int, int] | None = None) -> np.ndarray:
    """Return indices (H, W) of any integer type as uint8, or raise at the first value that is no class and not void.

    `meaning` maps stored values to classes; without it the value is the class.
    """
    if meaning is not None:
        table = np.full(1 << 16, -1, dtype=np.int32)
        table[VOID] = VOID
        table[list(meaning)] = list(meaning.values())
        odd = (values < 0) | (values >= len(table))
        indices = np.where(odd, -1, table[np.where(odd, 0, values)])
        wrong, known = values[indices < 0], ", ".join(map(str, sorted(meaning)))
    else:
        indices = values
        wrong = values[((values >= num_classes) | (values < 0)) & (values != VOID)]
        known = f"0..{num_classes - 1}"
    if wrong.size:
        raise DataError(
            f"{path}: mask value {int(wrong.min())}, but there are {num_classes} classes ({known}, void {VOID}); "
            "save the class index itself (not grey levels), or name all classes in classes.txt, "
            "or values and classes in _classes.csv"
        )
    return indices.astype(np.uint8)


def _colours(num_classes: int, coding: MaskCoding) -> dict[tuple[int, int, int], int]:
    """Return colour -> class: that of a coding, else of Pascal VOC; void has VOC's unless the coding says otherwise."""
    palette = voc_palette().tolist()
    own = coding.colours or {tuple(palette[index]): index for index in range(num_classes)}
    return {tuple(palette[VOID]): VOID, **own}


def _by_colour(path: Path, colours: np.ndarray, num_classes: int, coding: MaskCoding) -> np.ndarray:
    """Map uint8 (H, W, 3) colours to indices; grey values that are no colours of classes are taken as the index.

    Where `coding` has values, grey is one of them rather than a colour.
    """
    red, green, blue = (colours[..., channel].astype(np.uint32) for channel in range(3))
    codes = red << 16 | green << 8 | blue
    table = np.full(1 << 24, -1, dtype=np.int16)
    for (r, g, b), index in _colours(num_classes, coding).items():
        table[r << 16 | g << 8 | b] = index
    indices = table[codes]
    grey = colours[..., 0]
    known, values = bool((indices >= 0).all()), coding.values or range(num_classes)
    plain = (coding.values or not known) and (colours == grey[..., None]).all()
    if plain and np.isin(grey, [*values, VOID]).all():
        return _checked(path, grey, num_classes, coding.values)
    if known:
        return indices.astype(np.uint8)
    code = int(codes[indices < 0].min())
    where = "the colours that its classes are given" if coding.colours else "the VOC colour map"
    raise DataError(
        f"{path}: mask colour ({code >> 16}, {code >> 8 & 255}, {code & 255}) is none of the {num_classes} classes "
        f"in {where}; save the mask as a palette PNG whose index is the class"
    )


def holds_only(path: Path, allowed: tuple[int, ...]) -> set[int] | None:
    """Return the grey values of a mask if all of them are among `allowed`, else None; colours and 1 bit are None."""
    with _opened(path) as image:
        if image.mode == "1":
            return None
        values = np.asarray(image)
    if values.ndim == 3:
        if values.shape[2] >= 3 and not (values[..., :3] == values[..., :1]).all():
            return None
        values = values[..., 0]
    found = {int(value) for value in allowed if (values == value).any()}
    return found if np.isin(values, allowed).all() else None


def looks_like_mask(path: Path) -> bool:
    """Return whether a file, by its values, holds class indices and is no photograph; a broken one does not."""
    try:
        with _opened(path) as image:
            if image.mode in _INDEX_MODES:
                # A photograph in grey or in 256 colours uses many more values than a mask.
                return len(np.unique(np.asarray(image))) <= 64
        read_mask(path, num_classes=VOID)
    except DataError:
        return False
    return True
