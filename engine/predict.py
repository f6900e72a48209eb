"""What a model sees in pictures: boxes, regions and a label, as pictures and as JSON.

    python -m engine.predict --weights weights/onehead.pt photo.jpg folder/ https://example.org/street.jpg

In Python:

    from engine.predict import draw, load_model, predict

    model = load_model("weights/onehead.pt")  # or its .onnx export
    found = predict(model, "photo.jpg")  # or an image of Pillow, or an array (H, W, 3)
    print(found.label, found.probability, found.boxes)
    draw("photo.jpg", found).save("photo-found.png")
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from data.errors import DataError
from data.images import IMAGE_SUFFIXES
from engine.evaluation.draw import draw
from engine.evaluation.evaluate import Model
from engine.evaluation.pictures import is_url, opened
from engine.evaluation.prediction import Prediction, predict
from engine.speed.onnx_model import OnnxModel, is_onnx
from engine.storage import checkpoint
from engine.storage.device import pick_device
from engine.storage.errors import UserError, machine_fault, run_cli
from engine.storage.files import own_json, write_text
from models.deploy import LastLayer

__all__ = ["Prediction", "draw", "load_model", "predict"]
MARK = "OneHead"
"""What the results' files say of the software that made them, so that nothing else is ever replaced."""
INDEX = "predictions.json"
WEAK = 0.1
"""Score to try where no picture has a box of the weights' own threshold."""
MAX_STEM = 200
"""Bytes of a source's name that the name of its result takes over; file systems allow 255 with number and ending."""
FEW = "--weights of fewer classes, or smaller pictures"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, predict, write pictures and JSON."""
    parser = argparse.ArgumentParser(
        description="Find boxes, regions and a label in pictures.",
        epilog="Every picture is tried. Exit code 1: some failed, and are listed at the end; 2: all did.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of images, or URLs")
    parser.add_argument("--weights", required=True, help="checkpoint of the model, or its .onnx export")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder of the results (%(default)s)")
    parser.add_argument("--score", type=fraction, help="least score of a box, 0..1 (the weights' own threshold)")
    args = parser.parse_args(argv)
    wanted = list(sources(args.images, args.out))
    check_out(args.out, args.images)
    failed = predict_all(load_model(args.weights, pick_device()), wanted, args.out, args.score)
    for sentence in failed:
        print(f"error: {sentence}", file=sys.stderr)
    return 0 if not failed else 1 if len(failed) < len(wanted) else 2


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """The deployed model of a checkpoint on `device`, or of an ONNX file, which runs on the CPU. Raises UserError."""
    return OnnxModel(path) if is_onnx(path) else LastLayer(checkpoint.load_model(path, device))


def predict_all(model: Model, wanted: Sequence[tuple[str, str]], out: Path, score: float | None) -> list[str]:
    """Predict and draw each (name, source) into `out`; returns a sentence on each that failed."""
    results: dict[str, Any] = {}
    failed: list[str] = []
    made = PngImagePlugin.PngInfo()
    made.add_text("Software", MARK)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name, source in tqdm(wanted, unit="image", disable=None):
            try:
                image = opened(source)
                found = predict(model, image, score)
                picture = draw(image, found)
            except Exception as error:
                failed.append(complaint(source, error))
                continue
            picture.save(out / f"{name}.png", pnginfo=made)
            results[source] = found.to_json()
            print(f"{source}: {found.in_words()} -> {out / name}.png")
    finally:  # what was found is kept, whatever ends the program
        if results:
            write_text(out / INDEX, json.dumps(results, indent=1) + "\n")
    hidden = results and score is None and model.classes["det"] and model.threshold > WEAK
    if hidden and not any(found["boxes"] for found in results.values()):
        print(
            f"note: no box has the score of {model.threshold:g} that these weights ask for; try --score {WEAK}",
            file=sys.stderr,
        )
    return failed


def complaint(source: str, error: Exception) -> str:
    """Why a picture failed, in a sentence; raises again what is a fault of this program."""
    if isinstance(error, (DataError, UserError)):
        return str(error)
    sentence = machine_fault(error, FEW)
    if sentence is None:
        raise error
    return f"{source}: {sentence}"


def fraction(text: str) -> float:
    """A number in 0..1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, such as 0.3")
    return value


def check_out(out: Path, given: Sequence[str]) -> None:
    """Refuse a folder of results that is a file, where they would mix with pictures, or with somebody else's index."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder for the results")
    for source in given:
        if not is_url(source) and os.path.isdir(source) and Path(source).resolve() == out.resolve():
            raise UserError(f"--out {out}: is the folder of the pictures; name another for the results")
    if not own_json(out / INDEX, "regions"):
        raise UserError(f"--out {out}: the {INDEX} there is no earlier result; name another folder")


def sources(given: Sequence[str], out: Path | None = None) -> Iterator[tuple[str, str]]:
    """All images meant, as (unique name of the result, path or URL); no name of a file in `out` that is no result.

    What is missing is among them, so that the others are tried. Raises UserError for a folder without images.
    """
    taken: set[str] = set()
    for source in given:
        inside = [source]
        if not is_url(source) and os.path.isdir(source):  # a name that no file can have is no folder
            files = (p for p in Path(source).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            inside = sorted(map(str, files))
            if not inside:
                raise UserError(f"{source}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        for one in inside:
            stem = PurePosixPath(urlsplit(one).path if is_url(one) else one).stem
            stem = stem.encode(errors="ignore")[:MAX_STEM].decode(errors="ignore") or "image"
            name = next(n for n in names(stem) if n not in taken and (out is None or replaceable(out / f"{n}.png")))
            taken.add(name)
            yield name, one


def names(stem: str) -> Iterator[str]:
    """The stem, then the stem with a number."""
    yield stem
    yield from (f"{stem}-{i}" for i in itertools.count(1))


def replaceable(path: Path) -> bool:
    """Whether nothing is there, or an earlier result."""
    if not path.exists() and not path.is_symlink():
        return True
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == MARK
    except (OSError, ValueError, SyntaxError):
        return False


if __name__ == "__main__":
    sys.exit(run_cli(main))
