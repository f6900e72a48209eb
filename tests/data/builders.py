"""Small drawn sets on disk, in any layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.classes import voc_palette

SIZE = (32, 24)
"""Width and height of every drawn image, in pixels."""


def draw_image(path: Path, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Path:
    """Save noise, which no one can take for a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def mask_values(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A background, a rectangle of class 15, its border void."""
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    values[4:12, 6:20] = 255
    values[5:11, 7:19] = 15
    return values


def draw_mask(path: Path, values: np.ndarray | None = None) -> Path:
    """Save a palette PNG whose index is the class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask_values() if values is None else values)
    image.putpalette(voc_palette().tobytes())
    image.save(path)
    return path


def annotation(image_id: object, category_id: object, bbox: object, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, **more}


def coco(
    names: Sequence[str],
    annotations: Sequence[dict[str, Any]],
    categories: dict[int, Any],
    size: tuple[int, int] = SIZE,
) -> dict[str, Any]:
    """A COCO document; image ids are 1, 2, ... in the order of `names`."""
    numbered = [{"id": position + 1, **note} for position, note in enumerate(annotations)]
    return {
        "images": [
            {"id": position + 1, "file_name": name, "width": size[0], "height": size[1]}
            for position, name in enumerate(names)
        ],
        "annotations": numbered,
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
    }


def write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def det_set(root: Path, images: str, annotation_file: str, split: str, extra: str = "") -> None:
    """Three images of one split, two of them with a box: a cat and a dog (ids 17, 18), at `x = 1, 2`."""
    names = [f"{split}{number}.jpg" for number in range(3)]
    for name in names:
        draw_image(root / images.format(split=split) / name)
    boxes = [annotation(1, 17, [1, 2, 10, 8]), annotation(2, 18, [2, 3, 4, 5])]
    document = coco([extra + name for name in names], boxes, {17: "cat", 18: "dog"})
    write_json(root / annotation_file.format(split=split), document)


def seg_set(root: Path, images: str, masks: str, split: str) -> None:
    """Three images of one split with their masks."""
    for number in range(3):
        draw_image(root / images.format(split=split) / f"{split}{number}.jpg")
        draw_mask(root / masks.format(split=split) / f"{split}{number}.png")


def cls_set(root: Path, folder: str, split: str, classes: Sequence[str]) -> None:
    """Two images of each class, the second one greyscale."""
    for path in classes:
        name = path.split("/")[0]
        for number, mode in enumerate(("RGB", "L")):
            draw_image(
                root / folder.format(split=split) / path.format(split=split) / f"{split}_{name}_{number}.JPEG",
                mode=mode,
            )
