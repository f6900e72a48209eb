"""Freely licensed pictures that come with installed libraries, what they show, and what a network makes of them.

scikit-image brings four, given away by their photographers or in the public domain, matplotlib a portrait in the public
domain. All five are shown in README or report: which where is decided by counting errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw

from engine.evaluation.draw import colour_of, draw
from engine.evaluation.evaluate import Model
from engine.evaluation.lettering import lettering
from engine.evaluation.prediction import Prediction, predict
from engine.storage.errors import UserError

SHOWN = 3
"""Pictures that README shows; the report shows the others."""
SIDE = 480
"""Longer side of a picture in a figure, in pixels."""
LINE, GAP = 24, 12
"""Height of a line below a picture, and the space between pictures, in pixels."""
BACKGROUND = "background"
FIGURE_SHARE = 0.02
"""Smaller regions count neither as found nor as wrong."""


@dataclass(frozen=True)
class Photograph:
    """A picture, and what of the sets' classes is in it: how many objects of each class, and which regions."""

    name: str
    objects: dict[str, int]
    regions: frozenset[str]


PHOTOGRAPHS = (
    Photograph("astronaut.png", {"person": 1}, frozenset({"person"})),
    Photograph("chelsea.png", {"cat": 1}, frozenset({"cat"})),
    Photograph("coffee.png", {"cup": 1, "dining table": 1}, frozenset({"diningtable"})),
    Photograph("camera.png", {"person": 1}, frozenset({"person"})),
    Photograph("grace_hopper.jpg", {"person": 1}, frozenset({"person"})),
)


def opened(photograph: Photograph) -> Image.Image:
    """The picture as RGB, SIDE pixels on its longer side. Raises UserError when scikit-image is not installed."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError("the pictures come with scikit-image: pip install scikit-image")
    path = Path(package.origin).parent / "data" / photograph.name
    with Image.open(path if path.is_file() else get_sample_data(photograph.name, asfileobj=False)) as image:
        picture = image.convert("RGB")
    scale = SIDE / max(picture.size)
    return picture.resize((round(scale * picture.width), round(scale * picture.height)))


def errors(photograph: Photograph, found: Prediction) -> int:
    """Objects and regions that are missed, and boxes and regions of what is not there."""
    boxes, there = Counter(box.name for box in found.boxes), Counter(photograph.objects)
    regions = {name for name, share in found.regions.items() if share >= FIGURE_SHARE} - {BACKGROUND}
    return (boxes - there).total() + (there - boxes).total() + len(regions ^ photograph.regions)


def ranked(model: Model) -> list[tuple[Image.Image, Prediction]]:
    """The pictures and what a model makes of them, those with the fewest errors first."""
    seen = [(photograph, opened(photograph)) for photograph in PHOTOGRAPHS]
    found = [(photograph, picture, predict(model, picture)) for photograph, picture in seen]
    return [(picture, said) for photograph, picture, said in sorted(found, key=lambda f: errors(f[0], f[2]))]


def side_by_side(seen: Sequence[tuple[Image.Image, Prediction]]) -> Image.Image:
    """Pictures with boxes and regions in a row, regions' names and the label below each."""
    drawn = [draw(picture, found, with_legend=False) for picture, found in seen]
    size = sum(p.width + GAP for p in drawn) - GAP, max(p.height for p in drawn) + 2 * LINE
    whole, left = Image.new("RGB", size, "white"), 0
    pen = ImageDraw.Draw(whole)
    for picture, (_, found) in zip(drawn, seen):
        whole.paste(picture, (left, 0))
        caption(pen, left, picture.height, found)
        left += picture.width + GAP
    return whole


def caption(pen: ImageDraw.ImageDraw, left: int, top: int, found: Prediction) -> None:
    """Two lines below a picture: its regions by colour, and its label."""
    letters, at = lettering((found.label or "", *found.regions)), left
    for name in (n for n, share in found.regions.items() if share >= FIGURE_SHARE and n != BACKGROUND):
        pen.rectangle((at, top + 6, at + 14, top + 20), fill=colour_of(found.seg_classes.index(name)))
        text = letters.legible(f"{name} ({found.regions[name]:.0%})")
        pen.text((at + 20, top + 4), text, fill="black", font=letters.font)
        at += 20 + round(pen.textlength(text, font=letters.font)) + 2 * GAP
    text = letters.legible(f"label: {found.label} ({found.probability:.0%})")
    pen.text((left, top + 4 + LINE), text, fill="black", font=letters.font)
