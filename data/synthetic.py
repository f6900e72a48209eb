"""Three small drawn sets in the layout of the real ones: `python -m data.synthetic --root data/synthetic`.

They need no network, are learnt from random weights in minutes on a CPU, and are byte-identical for one seed.
Detection and segmentation show one to four shapes; classification shows one large patterned patch.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from data.classes import voc_palette
from data.errors import DataError
from data.types import VOID

SHAPES = {"disc": 0.0, "square": 0.25, "triangle": 0.5, "star": 0.75}
"""Shape classes of detection and segmentation, and the hue (in turns) around which each is coloured."""
PATTERNS = {"checks": 0.05, "cross": 0.25, "dots": 0.45, "rings": 0.65, "stripes": 0.85}
"""Classes of classification, and their hues."""
SPLITS = ("train", "val")
MARKER = "synthetic.json"
FINE = 4  # shapes are drawn this much finer and averaged down, for smooth edges

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What decides every byte of the sets: images per split, seed, long side of an image in pixels."""

    train: int = 240
    val: int = 60
    seed: int = 0
    size: int = 160


@dataclass(frozen=True)
class Shape:
    """One drawn object: class index without background, and its visible pixels, bool (h, w)."""

    label: int
    visible: NDArray[np.bool_]

    def box(self) -> tuple[int, int, int, int]:
        """Return the tight box of the visible pixels: x, y, width, height in pixels."""
        rows, columns = (np.flatnonzero(self.visible.any(axis)) for axis in (1, 0))
        x, y = int(columns[0]), int(rows[0])
        return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def colour(rng: Generator, hue: float) -> Pixels:
    """Draw a strong colour near `hue` (in turns); float32 (3,), 0..255."""
    near = (hue + rng.uniform(-0.035, 0.035)) % 1
    return 255 * np.asarray(colorsys.hsv_to_rgb(near, rng.uniform(0.65, 1), rng.uniform(0.6, 1)), np.float32)


def background(rng: Generator, size: int) -> Pixels:
    """Draw soft, pale blotches with a few grey strokes; float32 (h, w, 3), 0..255, long side `size`."""
    short = int(size * rng.uniform(0.75, 1))
    width, height = (size, short) if rng.random() < 0.6 else (short, size)
    cells = int(rng.integers(2, 9))
    grey = rng.uniform(50, 200) + rng.uniform(-40, 40, (cells, cells, 1))
    coarse = np.clip(grey + rng.uniform(-22, 22, (cells, cells, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 5))):
        ends = [(float(x) * width, float(y) * height) for x, y in rng.random((2, 2))]
        pen.line(ends, fill=(int(rng.integers(20, 236)),) * 3, width=int(rng.integers(1, 4)))
    return np.asarray(picture, np.float32)


def outline(rng: Generator, name: str, radius: float) -> NDArray[np.float64]:
    """Return the corners of a shape around the origin, turned and stretched at random; float (n, 2)."""
    corners, inner, turn = {
        "disc": (48, 1.0, math.pi),
        "square": (4, 1.0, 0.25),
        "triangle": (3, 1.0, 0.5),
        "star": (10, 0.45, math.pi),
    }[name]
    start = math.pi / 4 if name == "square" else -math.pi / 2
    angles = start + rng.uniform(-turn, turn) + 2 * math.pi * np.arange(corners) / corners
    reach = radius * np.where(np.arange(corners) % 2, inner, 1.0)
    stretch = math.sqrt(rng.uniform(0.8, 1.25))
    return np.stack([reach * np.cos(angles) * stretch, reach * np.sin(angles) / stretch], 1)


def place_shape(rng: Generator, name: str, width: int, height: int) -> Pixels:
    """Draw a shape at a random position wholly inside the image; coverage float32 (h, w), 0..1."""
    corners = outline(rng, name, 1.0)
    extent = corners.max(0) - corners.min(0)
    # The shorter side of the box is 18..48 % of the shorter side of the image, small ones more often.
    side = min(width, height) * 0.18 * (0.48 / 0.18) ** rng.random()
    corners *= side / extent.min()
    room = np.array([width, height]) - (corners.max(0) - corners.min(0)) - 2
    corners += 1 - corners.min(0) + np.maximum(room, 0) * rng.random(2)
    fine = Image.new("L", (width * FINE, height * FINE))
    ImageDraw.Draw(fine).polygon([(x * FINE, y * FINE) for x, y in corners.tolist()], fill=255)
    return np.asarray(fine.reduce(FINE), np.float32) / np.float32(255)


def shade(rng: Generator, picture: Pixels, coverage: Pixels, tint: Pixels) -> Pixels:
    """Lay a tint, lighter to one side, over the picture, as opaque as `coverage`."""
    height, width = coverage.shape
    slope = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    light, alpha = (1 + slope[0] * x + slope[1] * y)[..., None], coverage[..., None]
    return np.asarray(picture * (1 - alpha) + light * tint * alpha, np.float32)


def finish(rng: Generator, picture: Pixels) -> Image.Image:
    """Add sensor noise and change brightness a little; RGB image."""
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(3, 12))
    return Image.fromarray(np.clip(picture * rng.uniform(0.8, 1.1) + noise, 0, 255).astype(np.uint8))


def scene(rng: Generator, size: int) -> tuple[Image.Image, list[Shape]]:
    """Draw one to four shapes, later ones covering at most a sixth of earlier ones."""
    picture = background(rng, size)
    height, width = picture.shape[:2]
    names = list(SHAPES)
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(1, 5))):
        label = int(rng.integers(len(names)))
        coverage = place_shape(rng, names[label], width, height)
        solid = coverage >= 0.5
        # An image that is already full simply shows fewer shapes.
        if any((s.visible & solid).sum() > min(s.visible.sum(), solid.sum()) / 6 for s in shapes):
            continue
        shapes = [Shape(s.label, s.visible & ~solid) for s in shapes] + [Shape(label, solid)]
        picture = shade(rng, picture, coverage, colour(rng, SHAPES[names[label]]))
    return finish(rng, picture), shapes


def mask_of(shapes: Iterable[Shape], height: int, width: int) -> NDArray[np.uint8]:
    """Return class indices, background 0, with a void line two pixels wide along every edge; uint8 (h, w)."""
    classes = np.zeros((height, width), np.uint8)
    for shape in shapes:
        classes[shape.visible] = shape.label + 1
    edge = np.zeros_like(classes, bool)
    for before, after in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = classes[before] != classes[after]
        edge[before] |= differ
        edge[after] |= differ
    classes[edge] = VOID
    return classes


def pattern(name: str, x: Pixels, y: Pixels) -> Pixels:
    """Return how much of the main colour a point takes, 0..1; x and y in units of the patch's radius."""
    period = 2 * math.pi / 0.5
    wave_x, wave_y = np.sin(period * x), np.sin(period * y)
    value = {
        "checks": wave_x * wave_y * 2,
        "cross": (0.22 - np.minimum(np.abs(x), np.abs(y))) * 6,
        "dots": wave_x + wave_y - 0.7,
        "rings": np.sin(period * np.hypot(x, y)),
        "stripes": wave_x,
    }[name]
    return np.asarray(np.clip(0.5 + 2 * value, 0, 1), np.float32)


def patch(rng: Generator, size: int, label: int) -> Image.Image:
    """Draw one large rounded patch with the pattern of class `label`."""
    picture = background(rng, size)
    height, width = picture.shape[:2]
    radius = min(width, height) * rng.uniform(0.28, 0.46)
    centre = [side / 2 + rng.uniform(-1, 1) * (side / 2 - radius) for side in (width, height)]
    x, y = np.meshgrid((np.arange(width) - centre[0]) / radius, (np.arange(height) - centre[1]) / radius)
    turn = rng.uniform(0, math.pi)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    roundness = rng.uniform(2, 6)  # exponent of a superellipse: from a disc to nearly a square
    reach = (np.abs(u) ** roundness + np.abs(v) ** roundness) ** (1 / roundness)
    inside = np.clip(radius * (1 - reach), 0, 1)
    name = list(PATTERNS)[label]
    share = pattern(name, u, v)[..., None]
    main, other = colour(rng, PATTERNS[name]), np.float32(rng.choice([35, 235]))
    tint = share * main + (1 - share) * (0.8 * other + 0.2 * main)
    return finish(rng, shade(rng, picture, inside.astype(np.float32), tint))


def write_detection(folder: Path, count: int, size: int, key: list[int]) -> None:
    """Write `images/*.jpg` and a COCO `annotations.json`."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for i in range(count):
        picture, shapes = scene(np.random.default_rng([*key, i]), size)
        name = f"{i + 1:06d}.jpg"
        picture.save(folder / "images" / name, quality=90)
        images.append({"id": i + 1, "file_name": name, "width": picture.width, "height": picture.height})
        for shape in shapes:
            what = {"category_id": shape.label + 1, "bbox": shape.box(), "area": int(shape.visible.sum())}
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0, **what})
    categories = [{"id": j + 1, "name": name, "supercategory": "shape"} for j, name in enumerate(SHAPES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")


def write_segmentation(folder: Path, count: int, size: int, key: list[int]) -> None:
    """Write `images/*.jpg`, palette `masks/*.png`, and `classes.txt` beside the split."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    palette = voc_palette().ravel().tolist()
    for i in range(count):
        picture, shapes = scene(np.random.default_rng([*key, i]), size)
        picture.save(folder / "images" / f"{i + 1:06d}.jpg", quality=90)
        mask = Image.fromarray(mask_of(shapes, picture.height, picture.width))
        mask.putpalette(palette)
        mask.save(folder / "masks" / f"{i + 1:06d}.png")
    (folder.parent / "classes.txt").write_text("\n".join(["background", *SHAPES]) + "\n", encoding="utf-8")


def write_classification(folder: Path, count: int, size: int, key: list[int]) -> None:
    """Write `<class>/*.JPEG`, the classes in turn."""
    for name in PATTERNS:
        (folder / name).mkdir(parents=True)
    for i in range(count):
        label = i % len(PATTERNS)
        picture = patch(np.random.default_rng([*key, i]), size, label)
        picture.save(folder / list(PATTERNS)[label] / f"{i + 1:06d}.JPEG", quality=90)


WRITERS = {
    "mini_coco_det": write_detection,
    "mini_voc_seg": write_segmentation,
    "imagenette_160": write_classification,
}


def already_there(root: Path, settings: Settings) -> bool:
    """Return whether `root` holds the complete sets; raise `DataError` if it holds anything else."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file, not a folder: choose another --root.")
    if not root.exists() or not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        remedy = "choose another --root, or empty it if nothing in it is needed."
        raise DataError(f"{root} is not empty and has no readable {MARKER}: {remedy}") from None
    if found != asdict(settings):
        remedy = "delete it or choose another --root."
        raise DataError(f"{root} was drawn with {found}, not {asdict(settings)}: {remedy}")
    for folder in (root / name / split for name in WRITERS for split in SPLITS):
        if not folder.is_dir():
            raise DataError(f"{folder} is missing from a drawn set: delete {root} or choose another --root.")
    return True


def write_sets(root: Path, settings: Settings) -> bool:
    """Draw the three sets into `root`; False if there already. Raises `DataError` for a foreign folder."""
    if min(settings.train, settings.val) < len(PATTERNS) or settings.size < 64 or settings.seed < 0:
        raise DataError(f"{settings}: train and val must be at least {len(PATTERNS)}, size 64, seed 0.")
    if already_there(root, settings):
        return False
    root.mkdir(parents=True, exist_ok=True)
    # Drawn elsewhere and moved, so that an interrupted run leaves no half set behind.
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f"{root.name}.", suffix=".tmp") as temporary:
        jobs = [(name, split) for name in WRITERS for split in SPLITS]
        for job, (name, split) in enumerate(tqdm(jobs, desc="drawing", unit="split", disable=None)):
            count = settings.train if split == "train" else settings.val
            WRITERS[name](Path(temporary) / name / split, count, settings.size, [settings.seed, job])
        for name in WRITERS:
            shutil.move(Path(temporary) / name, root / name)
    (root / MARKER).write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("python -m data.synthetic", description=__doc__, formatter_class=shown)
    parser.add_argument("--root", type=Path, default=Path("data/synthetic"), help="folder to write to")
    parser.add_argument("--train", type=int, default=Settings.train, help="training images per set")
    parser.add_argument("--val", type=int, default=Settings.val, help="validation images per set")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="same seed, same bytes")
    parser.add_argument("--size", type=int, default=Settings.size, help="long side of an image, pixels")
    given = parser.parse_args(arguments)
    try:
        new = write_sets(given.root, Settings(given.train, given.val, given.seed, given.size))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.root}: {'written' if new else 'complete already, nothing to do'}")
    for name in WRITERS:
        print(f"  {name}: {given.train} train, {given.val} val images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
