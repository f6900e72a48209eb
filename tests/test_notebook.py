"""The notebook runs from top to bottom in a fresh clone, on a CPU and drawn images."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "colab.ipynb"
README = ROOT / "README.md"


def test_the_notebook_is_short_and_valid() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 20
    text = NOTEBOOK.read_text()
    assert "torch==" not in text
    clone = re.search(r"https://github.com/([\w.-]+/[\w.-]+)", notebook.cells[1].source)
    assert clone is not None
    assert all(f"/github/{clone[1]}/blob/main/colab.ipynb" in t for t in (text, README.read_text()))
    for cell in notebook.cells:
        for word in cell.source.split():
            if word.startswith("configs/") and word.endswith(".yaml"):
                assert (ROOT / word).is_file(), word


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs_in_a_fresh_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "onehead")], check=True)
    clone = tmp_path / "onehead"
    pytest.importorskip("skimage", reason="shows pictures of scikit-image")
    monkeypatch.setenv("ONEHEAD_DRAWN", "few")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(clone)}}).execute()
    assert (clone / "runs" / "colab" / "forgetting.png").stat().st_size > 5000
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    scores = next(json.loads(line) for line in reversed(printed.splitlines()) if line.startswith('{"mAP"'))
    assert {"mAP", "AP50", "mIoU", "Top-1"} <= scores.keys()
    shown = [o["data"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert sum("image/png" in data for data in shown) == 4  # predictions, twice two or one, and the curves
    assert any("Forgetting curves" in data.get("text/html", "") for data in shown)
    (run,) = (clone / "runs" / "demo" / "wandb").glob("offline-run-*")
    assert f"wandb sync {run.relative_to(clone)}" in printed
