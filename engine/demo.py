"""A page to drop pictures on: boxes, regions and a label, of one network or of several side by side.

    python -m engine.demo --weights weights/onehead.pt weights/onehead_lite0.pt

Needs `pip install -e '.[demo]'`, no network and no account.
"""

from __future__ import annotations

import argparse
import html
import importlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from data.synthetic import patch, scene
from engine.evaluation.draw import OPACITY, colour_of, draw
from engine.evaluation.evaluate import Model
from engine.evaluation.pictures import LARGEST_DOWNLOAD, opened
from engine.evaluation.prediction import Prediction, predict
from engine.predict import complaint, load_model
from engine.storage.device import pick_device
from engine.storage.errors import UserError, first_line, run_cli

LONGEST = 1280
"""Pixels of the longer side that the page shows; networks see no more of a picture either."""
LIKELIEST = 5
"""Labels that get a bar."""
AT_ONCE = 4
"""Pictures that are worked on at the same time; others wait in line."""
VISITORS = 100
"""Those whose last picture is remembered; who comes back after more have come waits for another forward pass."""
IDLE_SECONDS = 3600
"""What was found in a picture, and its file, are forgotten after this time."""
SWITCHES = ("boxes", "masks", "label")


@dataclass(frozen=True)
class View:
    """What of a prediction is shown: the switches that are on, least score of a box, opacity of the regions, 0..1."""

    score: float
    on: frozenset[str] = frozenset(SWITCHES)
    opacity: float = OPACITY


@dataclass(frozen=True)
class Seen:
    """A picture and all that one network says of it, and the milliseconds that took."""

    picture: Image.Image
    found: Prediction
    milliseconds: float


Memory: TypeAlias = tuple[str | None, dict[str, Seen]]
"""Path of the last picture of a visitor, and what the networks, by name, said of it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, load the networks, serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A page to drop pictures on.")
    parser.add_argument("--weights", required=True, nargs="+", help="checkpoints of models, or their .onnx exports")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (%(default)s)")
    args = parser.parse_args(argv)
    import_gradio()  # before the networks are loaded: if it is missing, nothing was waited for
    device = pick_device()
    models = {path: load_model(path, device) for path in args.weights}
    with tempfile.TemporaryDirectory(prefix="onehead-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploaded pictures go with it
        examples = draw_examples(Path(folder))
        for model in models.values():
            look(model, Image.open(examples[0]))  # the first run takes longest, and is nobody's
        blocks = page(models, examples)
        print(f"open {serve(blocks, args.host)} in a browser; Ctrl-C ends it", flush=True)
        blocks.block_thread()
    return 0


def draw_examples(folder: Path) -> list[Path]:
    """Draw three scenes of shapes and three patterns into a folder."""
    rngs = [np.random.default_rng([1, i]) for i in range(6)]
    pictures = [scene(rng, 320)[0] for rng in rngs[:3]] + [patch(rng, 320, i) for i, rng in enumerate(rngs[3:])]
    paths = [folder / f"{kind}-{i}.png" for kind in ("shapes", "pattern") for i in (1, 2, 3)]
    for path, picture in zip(paths, pictures):
        picture.save(path)
    return paths


def look(model: Model, picture: Image.Image) -> Seen:
    """Run a network on a picture. Safe in several threads at once: a forward pass changes nothing in a model."""
    start = time.perf_counter()
    found = predict(model, picture, score=0.0)
    return Seen(picture, found, 1000 * (time.perf_counter() - start))


def read(path: str) -> Image.Image:
    """The picture of a file, upright, no larger than the page shows it. Raises DataError."""
    picture = opened(path)
    picture.thumbnail((LONGEST, LONGEST))
    return picture


def recall(models: Mapping[str, Model], memory: Memory, path: str | None, names: Sequence[str]) -> Memory:
    """What the named networks say of a picture; only those that have not seen it yet are run. Raises DataError."""
    if path is None:
        return None, {}
    seen = dict(memory[1]) if memory[0] == path else {}
    missing = [name for name in names if name not in seen]
    if missing:
        picture = next(iter(seen.values())).picture if seen else read(path)
        seen |= {name: look(models[name], picture) for name in missing}
    return path, seen


def shown(seen: Seen, view: View) -> tuple[Image.Image, str]:
    """The picture with what a view lets through, and a line of HTML below it: time, count of boxes, regions."""
    boxes = [box for box in seen.found.boxes if box.score >= view.score] if "boxes" in view.on else []
    masks = "masks" in view.on
    drawn = draw(seen.picture, replace(seen.found, boxes=boxes), view.opacity if masks else 0.0, with_legend=False)
    words = [f"{seen.milliseconds:.0f} ms"]
    if "boxes" in view.on:
        words.append(f"{len(boxes)} box" + ("es" if len(boxes) != 1 else ""))
    if masks:
        words += [chip(seen.found, name, share) for name, share in seen.found.regions.items() if share >= 0.005]
    return drawn, " &nbsp; ".join(words)


def chip(found: Prediction, name: str, share: float) -> str:
    """A region's colour, name and share as HTML."""
    colour = "rgb({}, {}, {})".format(*colour_of(found.seg_classes.index(name)))
    square = f'<span style="color: {colour}; -webkit-text-stroke: 0.5px grey">&#9632;</span>'
    return f'<span style="white-space: nowrap">{square} {html.escape(name)} {share:.0%}</span>'


def refusal(path: str, error: Exception) -> str:
    """Why a picture failed, in a sentence that names no folder of this machine; raises again what is our own fault."""
    return complaint(path, error).replace(path, Path(path).name)


def page(models: Mapping[str, Model], examples: Sequence[Path]) -> Any:
    """The page, a `gradio.Blocks`. Its one function, `/look`, can be called by `gradio_client` too."""
    gr = import_gradio()
    with gr.Blocks(title="OneHead", analytics_enabled=False, delete_cache=(IDLE_SECONDS, IDLE_SECONDS)) as blocks:
        gr.Markdown("# OneHead\nBoxes, regions and a label from one forward pass.")
        with gr.Row():
            with gr.Column(min_width=320):
                inputs = controls(gr, list(models), examples)
            columns = {name: column(gr, name) for name in models}
            scores = [least_score(gr, columns[name][0], model.threshold) for name, model in models.items()]
        memory = gr.State((None, {}), time_to_live=IDLE_SECONDS)

        def update(
            path: str | None, names: list[str], on: list[str], opacity: float, memory: Memory, *scores: float
        ) -> list[Any]:
            try:
                memory = recall(models, memory, path, names)
            except Exception as error:
                raise gr.Error(refusal(str(path), error), print_exception=False) from None
            views = {name: View(score, frozenset(on), opacity) for name, score in zip(models, scores)}
            seen = {name: memory[1].get(name) for name in names}
            return [memory, *(cell for n in models for cell in cells(gr, n in seen, seen.get(n), views[n]))]

        gr.on(
            [control.change for control in (*inputs, *scores)],
            update,
            [*inputs, memory, *scores],
            [memory, *(cell for column in columns.values() for cell in column)],
            api_name="look",
            trigger_mode="always_last",
            show_progress="minimal",
        )
    return blocks


def controls(gr: ModuleType, names: list[str], examples: Sequence[Path]) -> list[Any]:
    """The left column: picture, names of the networks, switches, opacity."""
    sources = ["upload", "clipboard", "webcam"]
    picture = gr.Image(label="picture", sources=sources, type="filepath", height=320)
    # A file is read by `read`, within the limits of this project; Gradio would decode it first.
    picture.preprocess = lambda file: file and file.path
    gr.Examples([[str(path)] for path in examples], picture, label="drawn examples", cache_examples=False)
    chosen = gr.CheckboxGroup(names, value=names, label="weights", visible=len(names) > 1)
    on = gr.CheckboxGroup(list(SWITCHES), value=list(SWITCHES), label="show")
    opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="opacity of the masks")
    return [picture, chosen, on, opacity]


def column(gr: ModuleType, name: str) -> list[Any]:
    """What one network found: the column itself, drawing, line below it, labels."""
    with gr.Column(min_width=320) as whole:
        gr.HTML(f"<b>{html.escape(name)}</b>")
        drawing = gr.Image(format="jpeg", interactive=False, show_label=False, alt_text=f"What {name} found")
        line = gr.HTML()
        labels = gr.Label(label="label", num_top_classes=LIKELIEST)
    return [whole, drawing, line, labels]


def least_score(gr: ModuleType, column: Any, threshold: float) -> Any:
    """The slider below what one network found; a network has a scale of its own."""
    with column:
        return gr.Slider(0, 1, threshold, step=0.01, label="least score of a box")


def cells(gr: ModuleType, chosen: bool, seen: Seen | None, view: View) -> list[Any]:
    """New contents of a column."""
    drawn, line = shown(seen, view) if seen else (None, "")
    labels = gr.Label(seen.found.chances if seen else None, visible="label" in view.on)
    return [gr.Column(visible=chosen), drawn, line, labels]


def serve(blocks: Any, host: str) -> str:
    """Serve a page in the background, to several visitors at once; its address. Raises UserError for a foreign host."""
    try:
        socket.create_server((host, 0)).close()  # Gradio would try a hundred ports for five seconds each
        _, address, _ = blocks.queue(default_concurrency_limit=AT_ONCE).launch(
            server_name=host,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
            max_file_size=LARGEST_DOWNLOAD,
            state_session_capacity=VISITORS,
        )
    except OSError as error:
        remedy = "name an address of this machine and, if any, a free port in GRADIO_SERVER_PORT"
        raise UserError(f"--host {host}: cannot listen there ({first_line(error)}); {remedy}") from None
    return str(address)


def import_gradio() -> ModuleType:
    """Gradio, which only the page needs. Raises UserError when it is not installed."""
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise UserError("the page needs Gradio: pip install -e '.[demo]'") from None


if __name__ == "__main__":
    sys.exit(run_cli(main))
