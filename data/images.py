"""Decoding of image and mask files, safe against broken, huge and unusual files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from data.classes import voc_palette
from data.errors import DataError
from data.types import VOID

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
MASK_SUFFIXES = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff"})
"""Lossless formats only: JPEG would blur the indices."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""The only decoders that are used, whatever a file is called: others run programs (EPS) or are seldom tried."""
MAX_PIXELS = 64_000_000
_ORIENTATION_TAG = 274
_INDEX_MODES = frozenset({"P", "L", "1", "I", "I;16", "I;16B", "I;16L", "LA", "PA"})


@contextmanager
def _opened(path: Path, file: BinaryIO | None = None) -> Iterator[Image.Image]:
    """Open an image, header only; whatever goes wrong inside becomes a DataError that names the file."""
    try:
        with Image.open(file or path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels")
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image; download the set again or check --data_root") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "far too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); delete it or download it again") from error


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

    Greyscale, palette and CMYK are converted; 16 bits keep their upper 8; alpha is dropped; of an animation
    the first frame counts. `file` is the content where `path` only names it, inside an archive.
    Raises DataError if the file is missing, truncated, no image, or above 64 megapixels.
    """
    with _opened(path, file) as image:
        image.load()
        if image.mode == "I" or image.mode.startswith("I;16"):
            # PIL would clip everything above 255 to white.
            upper = np.asarray(image) >> 8
            return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
        if image.mode == "P":
            # By way of RGBA, because a palette may carry transparency that RGB alone cannot hold.
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def read_mask(path: Path, num_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a segmentation mask to class indices: uint8 (H, W), values below `num_classes` or 255 (void).

    Palette, greyscale, 1-bit and 16-bit files hold the index; RGB files are read by the VOC colour map.
    `size` is the width and height of the image. Raises DataError if the mask has another size, if a value or
    colour stands for no class, or if the file cannot be decoded.
    """
    with _opened(path) as image:
        if size is not None and image.size != size:
            raise DataError(
                f"{path}: the mask has {image.size[0]} x {image.size[1]} pixels, "
                f"its image {size[0]} x {size[1]}; save the mask at the size of its image"
            )
        image.load()
        if image.mode in _INDEX_MODES:
            values = np.asarray(image, dtype=np.uint8) if image.mode == "1" else np.asarray(image)
            return _checked(path, values[..., 0] if values.ndim == 3 else values, num_classes)
        if image.mode in ("RGB", "RGBA"):
            return _by_colour(path, np.asarray(image)[..., :3], num_classes)
        raise DataError(f"{path}: a mask of mode {image.mode}; save a palette PNG whose index is the class")


def _checked(path: Path, values: np.ndarray, num_classes: int) -> np.ndarray:
    """Return indices (H, W) of any integer type as uint8, or raise at the first value that is no class and not void."""
    wrong = values[((values >= num_classes) | (values < 0)) & (values != VOID)]
    if wrong.size:
        raise DataError(
            f"{path}: mask value {int(wrong.min())}, but there are {num_classes} classes "
            f"(0..{num_classes - 1}, void {VOID}); save the class index itself (not grey levels), "
            "or name all classes in classes.txt"
        )
    return values.astype(np.uint8)


def _by_colour(path: Path, colours: np.ndarray, num_classes: int) -> np.ndarray:
    """Map uint8 (H, W, 3) colours to indices; grey values that are no VOC colours are taken as the index."""
    red, green, blue = (colours[..., channel].astype(np.uint32) for channel in range(3))
    codes = red << 16 | green << 8 | blue
    palette, table = voc_palette(), np.full(1 << 24, -1, dtype=np.int16)
    for index in (*range(num_classes), VOID):
        r, g, b = palette[index].tolist()
        table[r << 16 | g << 8 | b] = index
    indices = table[codes]
    if (indices >= 0).all():
        return indices.astype(np.uint8)
    grey = colours[..., 0]
    if (colours == grey[..., None]).all() and ((grey < num_classes) | (grey == VOID)).all():
        return grey.copy()
    code = int(codes[indices < 0].min())
    raise DataError(
        f"{path}: mask colour ({code >> 16}, {code >> 8 & 255}, {code & 255}) is none of the {num_classes} classes "
        "in the VOC colour map; save the mask as a palette PNG whose index is the class"
    )


def looks_like_mask(path: Path) -> bool:
    """Tell by its values whether a file holds class indices, not a photograph; a broken one does not."""
    try:
        with _opened(path) as image:
            if image.mode in _INDEX_MODES:
                # A photograph in grey or in 256 colours uses many more values than a mask.
                return len(np.unique(np.asarray(image))) <= 64
        read_mask(path, num_classes=VOID)
    except DataError:
        return False
    return True
