"""From values and charts to a page: the templates of this folder, with everything escaped that comes from outside."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.tracking.plots import pyplot


def render(template: str, **values: Any) -> str:
    """A page in ASCII: whatever else it shows is written as character references, so that no encoding spoils it."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template(template).render(**values)
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def chart(draw: Callable[[io.BytesIO], None], name: str) -> str:
    """What `draw` saves with matplotlib, as the SVG element of a page.

    name: differs from chart to chart, so that no two of a page share an id; the same chart always gives the same text.
    """
    buffer = io.BytesIO()
    options = {"savefig.format": "svg", "svg.fonttype": "none", "svg.hashsalt": name}
    with pyplot().rc_context(options):
        draw(buffer)
    svg = buffer.getvalue().decode("utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[\w.]+_\d+"', "", svg)  # for files of their own; never referred to
    return svg.replace("xlink:href", "href").replace("<svg ", '<svg role="img" class="chart" ', 1)


def plain(value: Any) -> str:
    """A setting as a file of settings holds it."""
    return value if isinstance(value, str) else json.dumps(value)
