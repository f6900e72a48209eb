"""Pseudo-boxes around whatever stands out in photographs: neck and head learn to place boxes before any label.

pip install opencv-contrib-python-headless
python -m scripts.propose_boxes photos.zip more.zip --root data/photo_boxes
python -m engine.train --stage det --config configs/warm.yaml --data.root data/photo_boxes

After DETReg (arXiv 2106.04550): regions from selective search (IJCV 2013). Unlike there those stay that differ most
from their surroundings for a network with public ImageNet weights (models.contrast), and groups of its features are
their classes. Writes a detection set, ROOT/mini_coco_det; photographs without any region are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms
from tqdm import tqdm

from data.photos import PackedImages, mini_names, read_photos
from engine.settings.config import PretrainConfig
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_text
from engine.training.teacher_runtime import public_teacher
from models.boxes import to_xyxy
from models.contrast import contrast
from models.public_teacher import PublicTeacher
from models.regions import pool_boxes

SIDE, SEARCHED, LOOKED_AT = 144, 100, 256
"""Shorter side, in pixels, of a photograph as it is written and as regions are looked for; side for the network."""
LEAST_SIDE, MOST_SIDE, MOST_AREA, MOST_STRETCH = 7, 0.95, 0.7, 4.0
"""Regions that are kept: least side in searched pixels, largest side and area as shares of the image, aspect."""
SAME, MOST = 0.4, 5
"""Of two boxes of a larger IoU one stays; most boxes of a photograph."""
GROUPS, SEED = 40, 0
"""Kinds of boxes; which photographs are drawn, and where groups begin."""
BATCH = 32
"""Photographs that the network sees at once; the first ones tell the scale of its features."""


@dataclass
class Found:
    """Boxes of one photograph, (n, 4) cx cy w h as fractions, and the features (n, F) of what they hold."""

    boxes: Tensor
    features: Tensor


def finder() -> Any:
    """OpenCV's selective search. Raises UserError where it is not installed."""
    try:
        from cv2.ximgproc import segmentation  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        needed = "pip install opencv-contrib-python-headless"
        raise UserError(f"selective search needs OpenCV's extra modules: {needed}") from None
    return segmentation.createSelectiveSearchSegmentation()


def search(image: np.ndarray) -> Tensor:
    """Regions of an RGB image (h, w, 3) that may be objects, (n, 4) as fractions, always in the same order."""
    height, width = image.shape[:2]
    scale = SEARCHED / min(height, width)
    small = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    selective = finder()
    selective.setBaseImage(np.ascontiguousarray(np.asarray(small)[:, :, ::-1]))
    selective.switchToSelectiveSearchFast()
    found = np.unique(np.asarray(selective.process(), dtype=np.float32).reshape(-1, 4), axis=0)
    corner, size = torch.from_numpy(found).split(2, dim=1)
    whole = torch.tensor([small.width, small.height])
    share = size / whole
    usable = (size.amin(1) >= LEAST_SIDE) & (size.amax(1) <= MOST_STRETCH * size.amin(1))
    usable &= (share.amax(1) <= MOST_SIDE) & (share.prod(1) <= MOST_AREA)
    return torch.cat([(corner + size / 2) / whole, share], dim=1)[usable]


class Chooser:
    """Keeps the regions that a public network tells from their surroundings."""

    def __init__(self, teacher: PublicTeacher) -> None:
        self.teacher = teacher.to(memory_format=torch.channels_last)
        self.scales: list[tuple[Tensor, Tensor]] = []

    def __call__(self, images: Sequence[np.ndarray], regions: Sequence[Tensor]) -> list[Found]:
        """The best few regions of each image, best first."""
        views = torch.stack([torch.from_numpy(i).permute(2, 0, 1).float() / 255 for i in map(squashed, images)])
        last, maps = self.teacher.maps(views.contiguous(memory_format=torch.channels_last))
        self.scales = self.scales or [(m.mean((0, 2, 3), True), m.std((0, 2, 3), keepdim=True)) for m in maps]
        maps = [(m - mean) / std.clamp(min=1e-6) for m, (mean, std) in zip(maps, self.scales)]
        evidence = self.teacher.evidence(last)
        return [self.best([m[i, None] for m in maps], evidence[i, None], boxes) for i, boxes in enumerate(regions)]

    def best(self, maps: list[Tensor], evidence: Tensor, boxes: Tensor) -> Found:
        """The best regions of one image."""
        score = contrast(maps, evidence, boxes[None])[0]
        chosen = boxes[nms(to_xyxy(boxes), score, SAME)[:MOST]]
        return Found(chosen, torch.cat([pool_boxes(m, chosen[None])[0] / m.shape[1] ** 0.5 for m in maps], dim=1))


def squashed(image: np.ndarray) -> np.ndarray:
    """An image as the network sees it."""
    return np.array(Image.fromarray(image).resize((LOOKED_AT, LOOKED_AT), Image.Resampling.BILINEAR))


def propose(images: Sequence[np.ndarray], choose: Chooser) -> Iterator[tuple[np.ndarray, Found]]:
    """Photographs with their boxes, in order; regions are searched for by several threads."""
    with ThreadPoolExecutor() as pool, tqdm(total=len(images), unit=" photographs", disable=None) as bar:
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            yield from zip(some, choose(some, list(pool.map(search, some))))
            bar.update(len(some))


def groups(found: Sequence[Found]) -> np.ndarray:
    """A group (n,) in 0..GROUPS-1 for every box, by the direction of its features from their mean (k-means)."""
    features = torch.cat([f.features for f in found])
    if len(features) < GROUPS:
        raise UserError(f"{len(features)} boxes were found, too few for {GROUPS} groups: give more photographs")
    directions = F.normalize(features - features.mean(0), dim=1)
    return np.asarray(kmeans2(directions.numpy(), GROUPS, minit="++", seed=np.random.default_rng(SEED))[1])


def write(folder: Path, pairs: Sequence[tuple[np.ndarray, Found]], labels: np.ndarray) -> None:
    """Write photographs and their boxes as one split in COCO's form."""
    (folder / "images").mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": f"group {i}"} for i in range(GROUPS)],
    }
    rows = iter(labels.tolist())
    for number, (image, own) in enumerate(pairs):
        height, width = image.shape[:2]
        name = f"{number:06}.jpg"
        Image.fromarray(image).save(folder / "images" / name, quality=92)
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        corners = to_xyxy(own.boxes) * torch.tensor([width, height, width, height])
        for (x1, y1, x2, y2), label in zip(corners.tolist(), rows):
            box = [round(v, 1) for v in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"id": len(content["annotations"]), "image_id": number, "category_id": label, "iscrowd": 0}
            content["annotations"].append({**entry, "bbox": box, "area": round(box[2] * box[3], 1)})
    write_text(folder / "annotations.json", json.dumps(content))


def unpacked(images: PackedImages, chosen: Sequence[int]) -> list[np.ndarray]:
    """Some of the photographs, RGB (h, w, 3)."""
    pixels = images.pixels.view(torch.uint8).view(-1, 4)[:, :3]
    places = ((int(images.starts[i]), *images.sizes[i].tolist()) for i in chosen)
    return [pixels[start : start + h * w].view(h, w, 3).numpy() for start, h, w in places]


def check(root: Path, most: int | None, held: int) -> Path:
    """The folder of the new set. Raises UserError for what would only fail after minutes of work."""
    finder()
    if held < 1 or (most is not None and most <= held):
        raise UserError(f"--held {held}, --most {most or 'all'}: at least one is held, and not all are")
    folder = root / "mini_coco_det"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {root}: {error.strerror}; give another folder as --root") from None
    if folder.exists():
        raise UserError(f"{folder} is there already: give another folder as --root, or delete it first")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Read photographs, propose boxes, write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="folders, zips or tars of photographs")
    parser.add_argument("--root", type=Path, required=True, help="folder that gets the detection set")
    parser.add_argument("--most", type=int, default=None, help="photographs, drawn at random; default: all")
    parser.add_argument("--held", type=int, default=120, help="of them, kept to be scored")
    parser.add_argument("--teacher_weights", default=None, help="file of the teacher's weights; default: downloaded")
    args = parser.parse_args(argv)
    folder = check(args.root, args.most, args.held)
    teacher, _ = public_teacher(PretrainConfig.teacher, args.teacher_weights)
    packed = read_photos(args.sources, SIDE, without=mini_names())
    order = np.random.default_rng(SEED).permutation(len(packed))[: args.most].tolist()
    pairs = [(image, f) for image, f in propose(unpacked(packed, order), Chooser(teacher)) if len(f.boxes)]
    if len(pairs) <= args.held:
        raise UserError(f"{len(pairs)} photographs show a region: give more than --held, which is {args.held}")
    labels = groups([f for _, f in pairs])
    first = sum(len(f.boxes) for _, f in pairs[: args.held])
    write(folder / "val", pairs[: args.held], labels[:first])
    write(folder / "train", pairs[args.held :], labels[first:])
    print(f"{folder}: {len(pairs)} photographs, {len(labels)} boxes")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main, memory="--most"))
