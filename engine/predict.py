"""What a model sees in pictures: boxes, regions and a label, as pictures and as JSON.

    python -m engine.predict --weights weights/onehead.pt photo.jpg folder/ https://example.org/street.jpg

In Python:

    from PIL import Image
    from engine.predict import draw, load_model, predict

    model = load_model("weights/onehead.pt")
    image = Image.open("photo.jpg").convert("RGB")
    found = predict(model, image)
    print(found.label, found.probability, found.boxes)
    draw(image, found).save("photo-found.png")
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from PIL import Image, ImageOps
from tqdm import tqdm

from data.downloading.fetch import Web, fetch_bytes
from data.images import IMAGE_SUFFIXES, read_image
from engine.evaluation.draw import draw
from engine.evaluation.prediction import Prediction, predict
from engine.storage.checkpoint import load_model
from engine.storage.device import pick_device
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_text

__all__ = ["Prediction", "draw", "load_model", "predict"]
LARGEST_DOWNLOAD = 50 << 20
ORIENTATION = 274
"""EXIF tag that says how a camera was held."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, predict, write pictures and JSON."""
    parser = argparse.ArgumentParser(description="Find boxes, regions and a label in pictures.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of images, or URLs")
    parser.add_argument("--weights", required=True, help="checkpoint of the model")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder of the results (%(default)s)")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a box, 0..1 (%(default)s)")
    args = parser.parse_args(argv)
    model = load_model(args.weights, pick_device())
    wanted, results = list(sources(args.images)), {}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, source in tqdm(wanted, unit="image", disable=None):
        image = opened(source)
        found = predict(model, image, args.score)
        draw(image, found).save(args.out / f"{name}.png")
        results[source] = found.to_json()
        print(f"{source}: {found.label} ({found.probability:.0%}), {len(found.boxes)} boxes -> {args.out / name}.png")
    write_text(args.out / "predictions.json", json.dumps(results, indent=1) + "\n")
    return 0


def is_url(source: str) -> bool:
    """Whether a source is to be fetched."""
    return urlsplit(source).scheme in ("http", "https")


def sources(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All images meant, as (unique name of the result, path or URL). Raises UserError for what is none."""
    taken: set[str] = set()
    for source in given:
        inside = [source]
        if not is_url(source) and Path(source).is_dir():
            inside = sorted(str(p) for p in Path(source).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(f"{source}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        elif not is_url(source) and not Path(source).is_file():
            raise UserError(f"{source}: no such file or folder; give image files, folders or URLs")
        for one in inside:
            stem = PurePosixPath(urlsplit(one).path if is_url(one) else one).stem or "image"
            name = next(n for i in range(len(taken) + 1) if (n := f"{stem}-{i}" if i else stem) not in taken)
            taken.add(name)
            yield name, one


def opened(source: str) -> Image.Image:
    """The image behind a path or URL as 8-bit RGB, upright. Raises DataError when there is none."""
    content = fetch_bytes(source, Web(), LARGEST_DOWNLOAD) if is_url(source) else Path(source).read_bytes()
    image = read_image(Path(source), io.BytesIO(content))
    with Image.open(io.BytesIO(content)) as original:
        image.getexif()[ORIENTATION] = original.getexif().get(ORIENTATION, 1)
    return ImageOps.exif_transpose(image)


if __name__ == "__main__":
    sys.exit(run_cli(main))
