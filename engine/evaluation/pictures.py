"""Pictures from wherever they come: files, addresses, images of Pillow, arrays."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageOps

from data.downloading.fetch import Web, fetch_bytes
from data.errors import DataError
from data.images import read_image
from data.pixels import array_to_rgb, to_rgb

AnyPicture: TypeAlias = Image.Image | np.ndarray | str | os.PathLike[str]
"""A path or URL, an image of any mode, or an array (H, W) or (H, W, C)."""
LARGEST_DOWNLOAD = 50 << 20
ORIENTATION = 274
"""EXIF tag that says how a camera was held."""


def rgb_picture(picture: AnyPicture) -> Image.Image:
    """Any picture as 8-bit RGB, itself where it is; of a file or address, upright.

    Raises DataError for a file that is none, ValueError for an array that is none (see `data.pixels.array_to_rgb`).
    """
    if isinstance(picture, np.ndarray):
        return array_to_rgb(picture)
    if not isinstance(picture, Image.Image):
        return opened(os.fspath(picture))
    return to_rgb(picture)


def is_url(source: str) -> bool:
    """Whether a source is to be fetched."""
    return urlsplit(source).scheme in ("http", "https")


def opened(source: str) -> Image.Image:
    """The image behind a path or URL as 8-bit RGB, upright. Raises DataError when there is none."""
    try:
        content = fetch_bytes(source, Web(), LARGEST_DOWNLOAD) if is_url(source) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}); check the file") from None
    image = read_image(Path(source), io.BytesIO(content))
    with Image.open(io.BytesIO(content)) as original:
        image.getexif()[ORIENTATION] = original.getexif().get(ORIENTATION, 1)
    ImageOps.exif_transpose(image, in_place=True)
    return image
