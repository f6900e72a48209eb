"""The page to drop pictures on: its functions, its API, and the page itself in a browser."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from engine.demo import LONGEST, View, chip, draw_examples, look, main, page, read, recall, refusal, serve, shown
from engine.evaluation.draw import colour_of
from engine.storage.errors import UserError, run_cli
from tests.engine.test_predict import Sees

ROOT = Path(__file__).parents[2]
GREY = (100, 100, 100)
RIGHT_EDGE, RIGHT_HALF = (240, 80), (400, 240)
"""In a picture of 480 x 320: a pixel on the edge of the only box, a dog's, and one in the only region, a cat."""


class Counting(Sees):
    """Counts how often it is run."""

    calls = 0

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        return super().__call__(images)


def grey() -> Image.Image:
    return Image.new("RGB", (480, 320), GREY)


@pytest.fixture
def too_large(tmp_path: Path) -> Path:
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    return tmp_path / "large.png"


def test_a_network_runs_once_for_a_picture_whatever_is_shown_of_it(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        grey().save(tmp_path / name)
    first, second = str(tmp_path / "1.png"), str(tmp_path / "2.png")
    models: dict[str, Any] = {"a": Counting(), "b": Counting()}
    memory = recall(models, (None, {}), first, ["a"])
    assert (list(memory[1]), models["b"].calls) == (["a"], 0)
    memory = recall(models, memory, first, ["a", "b"])
    memory = recall(models, memory, first, ["b"])
    assert (models["a"].calls, models["b"].calls) == (1, 1)
    memory = recall(models, memory, second, ["a"])
    assert (memory[0], list(memory[1]), models["a"].calls) == (second, ["a"], 2)
    assert recall(models, memory, None, ["a"]) == (None, {})


def test_switches_and_sliders_say_what_is_drawn() -> None:
    seen = look(Sees(), grey())  # type: ignore[arg-type]
    drawn, line = shown(seen, View(0.3))
    assert drawn.size == (480, 320)
    assert drawn.getpixel(RIGHT_EDGE) == colour_of(2)
    assert drawn.getpixel(RIGHT_HALF) == pytest.approx([0.55 * 100 + 0.45 * c for c in colour_of(1)], abs=1)
    assert "1 box " in line
    assert "cat 50%" in line
    without_boxes, line = shown(seen, View(0.3, on=frozenset({"masks"}), opacity=1.0))
    assert without_boxes.getpixel((239, 80)) == GREY
    assert without_boxes.getpixel(RIGHT_HALF) == colour_of(1)
    assert "box" not in line
    without_masks, line = shown(seen, View(0.3, on=frozenset({"boxes"})))
    assert without_masks.getpixel(RIGHT_EDGE) == colour_of(2)
    assert without_masks.getpixel(RIGHT_HALF) == GREY
    assert "cat" not in line
    assert "0 boxes" in shown(seen, View(0.999))[1]


def test_names_of_a_checkpoint_are_text_on_the_page() -> None:
    found = replace(look(Sees(), grey()).found, seg_classes=("background", "<script>"))  # type: ignore[arg-type]
    assert "&lt;script&gt; 50%" in chip(found, "<script>", 0.5)


def test_pictures_are_shown_no_larger_than_a_page_needs(tmp_path: Path) -> None:
    Image.new("RGB", (2 * LONGEST, 100)).save(tmp_path / "wide.png")
    assert read(str(tmp_path / "wide.png")).size == (LONGEST, 50)


def test_a_picture_above_the_limit_is_refused_without_a_folder_of_this_machine(too_large: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(str(too_large))
    expected = "large.png: 9000 x 8000 pixels, above the limit of 64 megapixels; scale it down or remove it"
    assert refusal(str(too_large), caught.value) == expected
    with pytest.raises(ZeroDivisionError):  # a fault of this program is not the visitor's
        refusal("a.png", ZeroDivisionError())


def test_examples_are_pictures_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (draw_examples(tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len({path.read_bytes() for path in first}) == 6
    assert max(Image.open(first[0]).size) == 320


def test_without_gradio_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_cli(main, ["--weights", "w.pt"]) == 2
    assert capsys.readouterr().err == "error: the page needs Gradio: pip install -e '.[demo]'\n"


def test_nothing_else_needs_gradio() -> None:
    rooms = ("models", "data", "continual", "engine", "scripts")
    named = {path.name for room in rooms for path in (ROOT / room).rglob("*.py") if "gradio" in path.read_text()}
    assert named == {"demo.py"}


class Meeting(Sees):
    """Answers only when two visitors ask at the same time."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=60)

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.both.wait()
        return super().__call__(images)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a page with the networks "one" and "two", and "meeting", which is not run unless it is named."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    folder = tmp_path_factory.mktemp("page")
    models: Any = {"one": Sees(), "two": Sees(), "meeting": Meeting()}
    models["two"].threshold = 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        blocks = page(models, draw_examples(folder))
        yield serve(blocks, "127.0.0.1")
        blocks.close()


def ask(
    address: str,
    picture: Path,
    names: list[str],
    on: tuple[str, ...] = ("boxes", "masks", "label"),
    threshold: float = 0.3,
) -> Any:
    """What the page's API answers to a new visitor; threshold: of the boxes of "two"."""
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, download_files=picture.parent)
    return client.predict(handle_file(str(picture)), names, list(on), 0.45, 0.3, threshold, 0.3, api_name="/look")


def test_two_networks_answer_side_by_side(address: str, tmp_path: Path) -> None:
    grey().save(tmp_path / "grey.png")
    drawings, lines, labels = parts(ask(address, tmp_path / "grey.png", ["one", "two"]))
    assert [bool(drawing) for drawing in drawings] == [True, True, False]
    assert Image.open(drawings[1]).getpixel(RIGHT_HALF) == pytest.approx(
        [0.55 * 100 + 0.45 * c for c in colour_of(1)], abs=4
    )
    assert ["1 box " in line for line in lines] == [True, True, False]
    assert labels[1]["value"]["label"] == "b"


def test_every_network_has_a_threshold_of_its_own(address: str, tmp_path: Path) -> None:
    grey().save(tmp_path / "grey.png")
    _, lines, _ = parts(ask(address, tmp_path / "grey.png", ["one", "two"], threshold=0.999))
    assert ["1 box " in line for line in lines] == [True, False, False]
    assert "0 boxes" in lines[1]
    configured = json.loads(urllib.request.urlopen(f"{address}config").read())["components"]
    sliders = [c["props"] for c in configured if c["props"].get("label") == "least score of a box"]
    assert [slider["value"] for slider in sliders] == [0.3, 0.7, 0.3]


def test_the_pages_refusal_is_the_projects_sentence(address: str, too_large: Path, tmp_path: Path) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=r"large.png: 9000 x 8000 pixels, above the limit of 64 megapixels; scale it"):
        ask(address, too_large, ["one"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(AppError, match=r"^broken.png: cannot be decoded"):
        ask(address, tmp_path / "broken.png", ["one"])


def test_two_visitors_are_served_at_the_same_time(address: str, tmp_path: Path) -> None:
    grey().save(tmp_path / "grey.png")
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: ask(address, tmp_path / "grey.png", ["meeting"]), range(2)))
    assert ["1 box " in parts(answer)[1][2] for answer in answers] == [True, True]


def test_the_page_listens_on_this_machine_alone_and_loads_nothing_from_elsewhere(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    pages = [urllib.request.urlopen(address + path).read().decode() for path in ("", "theme.css")]
    for text in pages:
        assert not re.findall(r"""(?:src=|href=|url\(|@import)["' ]*(?:https?:)?//(?!127\.0\.0\.1)[^"' )]+""", text)


def test_a_host_that_is_not_of_this_machine_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra demo")
    with pytest.raises(UserError, match=r"--host 192.0.2.1: cannot listen there \(.*\); name an address of this"):
        serve(page({}, draw_examples(tmp_path)), "192.0.2.1")  # kept for documentation, RFC 5737


def test_the_page_serves_no_file_of_this_machine(address: str) -> None:
    for path in (ROOT / "README.md", Path("/etc/passwd")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}gradio_api/file={path}")


@pytest.mark.slow
def test_in_a_browser_a_picture_goes_in_and_an_overlay_comes_out(address: str, tmp_path: Path, too_large: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a Chromium")
    grey().save(tmp_path / "grey.png")
    asked: list[str] = []
    with sync.sync_playwright() as play, play.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chrome:
        window = chrome.new_page()
        window.set_default_timeout(120_000)
        window.on("request", lambda request: asked.append(request.url))
        window.goto(address)
        window.get_by_label("meeting").uncheck()
        window.locator("input[type=file]").first.set_input_files(tmp_path / "grey.png")
        window.get_by_text("1 box").nth(1).wait_for()
        overlay = window.get_by_alt_text("What one found")
        overlay.wait_for()
        overlay.evaluate("image => image.decode()")
        answer = window.request.get(str(overlay.get_attribute("src")))
        (tmp_path / "overlay.jpg").write_bytes(answer.body())
        window.screenshot(path=tmp_path / "page.png", full_page=True)
        for slider in (0, 1):
            window.get_by_label("number input for least score of a box").nth(slider).fill("0.999")
        window.get_by_text("0 boxes").nth(1).wait_for()
        window.get_by_label("label", exact=True).uncheck()
        window.get_by_text("95%").first.wait_for(state="hidden")
        window.locator("input[type=file]").first.set_input_files(too_large)
        refused = window.get_by_text("large.png: 9000 x 8000 pixels, above the limit of 64 megapixels")
        refused.first.wait_for()  # the switch before it may not have been answered: then it is said twice
        window.screenshot(path=tmp_path / "refused.png", full_page=True)
    pixels = np.asarray(Image.open(tmp_path / "overlay.jpg"), float)
    assert pixels[240, 400] == pytest.approx([0.55 * 100 + 0.45 * c for c in colour_of(1)], abs=4)
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)


def parts(answer: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Drawings, lines and labels of all columns of an answer."""
    return answer[0::3], answer[1::3], answer[2::3]
