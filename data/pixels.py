"""Pixels of any kind as 8-bit RGB: every mode of Pillow, and arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

UNMULTIPLIED = {"P": "RGBA", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
"""Modes that reach RGB by way of another: a palette may carry transparency, and colours may be scaled by it."""


STRIP = 1 << 18
"""Pixels of a large picture that are worked on at once; a hundred bytes are needed for each."""


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """First row and end of each strip of a picture."""
    rows = max(1, STRIP // width)
    yield from ((top, min(top + rows, height)) for top in range(0, height, rows))


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W), channels innermost in memory; Pillow would hold it three times meanwhile."""
    pixels = torch.empty(image.height, image.width, 3, dtype=torch.uint8)
    for top, end in strips(*image.size):
        pixels[top:end] = torch.from_numpy(np.array(image.crop((0, top, image.width, end))))
    return pixels.permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, itself where it is that; transparency is dropped, of 16 bits the upper 8 are kept.

    Floats are taken as 0..1, or 0..255 where one is above 1. Raises ValueError for floats beyond.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        # Pillow would clip everything above 255 to white. In a file, mode I stands for 16 bits.
        wide = image.mode != "F" and (image.mode != "I" or image.format is not None or values.max(initial=0) > 255)
        return array_to_rgb((values >> 8).clip(0, 255).astype(np.uint8) if wide else values)
    if image.mode == "LAB":
        from PIL import ImageCms  # not in every build of Pillow

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert changed is not None
        return changed
    if image.mode in UNMULTIPLIED:
        image = image.convert(UNMULTIPLIED[image.mode])
    return image.convert("RGB")


def array_to_rgb(values: np.ndarray) -> Image.Image:
    """An array (H, W), or (H, W, C) of grey, grey + alpha, RGB or RGBA, as an RGB image; alpha is dropped.

    bool, uint8, uint16 (the upper 8 bits are kept), other integers in 0..255, or floats in 0..1 (0..255 where one is
    above 1). Raises ValueError for other shapes, types and values.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] > 4 or 0 in values.shape:
        raise ValueError(f"an array of shape {values.shape} is no picture: give (H, W), (H, W, 3) or (H, W, 4)")
    grey = values.shape[2] < 3
    pixels = to_bytes(values[..., : 1 if grey else 3])
    return Image.fromarray(pixels[..., 0] if grey else np.ascontiguousarray(pixels)).convert("RGB")


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of any type as uint8 0..255, by the rules of `array_to_rgb`."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer) and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"an array of {values.dtype} is no picture: give numbers")
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 255:  # NaN is refused too
        raise ValueError(f"pixels from {low} to {high}: give 0..255 or, as floats, 0..1")
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.uint8)
    return (values * (255.0 if high <= 1 else 1.0)).round().astype(np.uint8)
