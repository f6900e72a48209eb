"""Run colab.ipynb in a fresh clone, on drawn images, and store what it prints: no path, no photo of a set.

python -m scripts.store_outputs

Takes 12 to 25 minutes on 2 CPU cores. Progress bars are stored as they ended.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from engine.storage.errors import UserError, run_cli

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "colab.ipynb"
PATH = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/){2,}[\w.+-]*")
"""An absolute path of some depth; addresses have a colon or a slash before it."""


def last_frames(text: str) -> str:
    """What a terminal shows in the end: of lines written over each other the last, without colours and cursor moves."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r\n", "\n")
    lines = []
    for line in plain.split("\n"):
        frames = [frame.rstrip() for frame in line.split("\r")]
        if frames[-1] or len(frames) == 1:  # a bar that was wiped out leaves nothing
            lines.append(frames[-1])
    return "\n".join(lines)


def cleaned(notebook: Any) -> Any:
    """The notebook without times, and with outputs that name no path. Raises UserError where one is left."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise UserError(f"a cell ended with {output.ename}: {output.evalue}")
            if "image/jpeg" in output.get("data", {}):
                output.data.pop("image/png", None)  # the same picture again, five times as large
            if "text" in output:
                output.text = last_frames(output.text)
                left = PATH.search(output.text)
                if left:
                    raise UserError(f"an output names {left[0]}, a path of this machine: change what prints it")
    return notebook


def executed() -> Any:
    """The notebook after it ran in a fresh clone on drawn images, with paths relative to the clone."""
    os.environ["ONEHEAD_DRAWN"] = "all"
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # Colab has what tqdm misses here
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "onehead"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        resources = {"metadata": {"path": str(clone)}}
        NotebookClient(notebook, timeout=3600, coalesce_streams=True, resources=resources).execute()
        return relative(notebook, clone)


def relative(notebook: Any, folder: Path) -> Any:
    """The notebook with paths below a folder relative to it."""
    return nbformat.reads(nbformat.writes(notebook).replace(f"{folder}{os.sep}", ""), as_version=4)


def main(argv: Sequence[str] | None = None) -> int:
    """Execute, keep, clean, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executed", type=Path, metavar="FILE", help="store what this notebook printed when it ran")
    given = parser.parse_args(argv).executed
    kept = given or ROOT / "runs" / "colab-executed.ipynb"
    if not given:
        kept.parent.mkdir(exist_ok=True)
        nbformat.write(executed(), kept)
        print(f"{kept} is the notebook as it ran; --executed takes it up again")
    nbformat.write(cleaned(nbformat.read(kept, as_version=4)), NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
