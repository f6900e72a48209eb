"""Draw the figures of README.md and report.md into docs/figures from the records in results/.

python -m scripts.make_figures            # --check: write nothing, fail where a figure is of other records

Every picture carries a digest of the records it was drawn from, so text, figures and records cannot drift apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.predict import load_model
from engine.report.curves import plot_panels
from engine.storage.errors import UserError, run_cli
from engine.tracking.plots import plot_comparison, plot_pretraining
from scripts.report.architecture import draw_architecture
from scripts.report.pictures import SHOWN, ranked, side_by_side
from scripts.report.tables import OWN, RECIPE

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"


def stage0(record: Path, path: Path) -> None:
    """Curves of stage 0."""
    plot_pretraining(json.loads(record.read_text())["passes"], path)


def forgetting(folder: Path, path: Path) -> None:
    """Forgetting curves of the recipe's chains, seed 0 bold, beside the mean of the single-task networks."""
    results = [json.loads(file.read_text()) for file in cells(folder)]
    curves = [r["curve"] for r in results if r["variant"] == RECIPE]
    alone = {
        m: [r["rows"][-1][m] for r in results if (r["variant"], r["stage"]) == ("single-task", OWN[m])] for m in OWN
    }
    plot_panels(curves[0], {m: ("single-task", mean(values)) for m, values in alone.items()}, path, curves[1:])


def comparison(folder: Path, path: Path) -> None:
    """Where every variant of a grid ends, from the results of its cells."""
    plot_comparison([json.loads(file.read_text()) for file in cells(folder)], path)


def architecture(record: Path, path: Path) -> None:
    """The network, with its parameters by part."""
    counts = json.loads(record.read_text())
    draw_architecture({part: counts[f"parameters_{part}"] for part in ("backbone", "neck", "head")}, path)


def prediction(weights: Path, path: Path) -> None:
    """What the best model sees in the freely licensed pictures in which it errs least."""
    side_by_side(ranked(load_model(weights))[:SHOWN]).save(path)


def failures(weights: Path, path: Path) -> None:
    """What it sees in the others."""
    side_by_side(ranked(load_model(weights))[SHOWN:]).save(path)


BEST = "weights/onehead_lite0.pt"
FIGURES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "stage0": ("results/stage0.json", stage0),
    "forgetting": ("results/final", forgetting),
    "comparison": ("results/compare", comparison),
    "architecture": ("results/benchmark.json", architecture),
    "prediction": (BEST, prediction),
    "failures": (BEST, failures),
}
"""Name, the record or folder of records that it shows, and how it is drawn."""


def cells(record: Path) -> list[Path]:
    """The records of a folder, or the one that is named."""
    return sorted(record.glob("*.json")) if record.is_dir() else [record]


def digest(record: Path) -> str:
    """Of a record's content, or of all that a folder holds."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in cells(record))).hexdigest()


def drawn_from(picture: Path) -> str:
    """Digest of the record that a picture was drawn from, empty if it carries none."""
    with Image.open(picture) as image:
        return str(image.info.get("record", ""))


def make(name: str, root: Path, path: Path) -> None:
    """Draw one figure of the repository at `root` and write the digest of its record into it."""
    record, draw_figure = root / FIGURES[name][0], FIGURES[name][1]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_figure(record, path)
    with Image.open(path) as image:
        image.load()
    info = PngInfo()
    info.add_text("record", digest(record))
    image.convert("RGB").quantize().save(path, pnginfo=info, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figures that are of other records than there are now, or report that there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only report whether a figure is out of date")
    args = parser.parse_args(argv)
    for name, (record, _) in FIGURES.items():
        path = FOLDER / f"{name}.png"
        if path.exists() and drawn_from(path) == digest(ROOT / record):
            continue
        if args.check:
            raise UserError(f"docs/figures/{name}.png is of other records: run python -m scripts.make_figures")
        make(name, ROOT, path)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
