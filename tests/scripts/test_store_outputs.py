"""What is stored of a notebook's outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from engine.storage.errors import UserError
from scripts.store_outputs import cleaned, last_frames, relative


def with_output(text: str) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("print()", metadata={"execution": {"iopub.status.busy": "2024-01-01"}})
    cell.outputs = [nbformat.v4.new_output("stream", text=text)]
    return nbformat.v4.new_notebook(cells=[cell])


def test_of_lines_written_over_each_other_the_last_stays() -> None:
    assert last_frames("a\r\nb\n") == "a\nb\n"
    assert last_frames("10%\r50%\r100%\ndone\n") == "100%\ndone\n"
    assert last_frames("10%\r50%\r          \rdone\n") == "done\n"
    assert last_frames("10%\r50%\r     \r\nnext\n") == "next\n"
    assert last_frames("\x1b[31mred\x1b[0m\n\nend") == "red\n\nend"


def test_paths_in_the_clone_are_relative_and_others_are_refused() -> None:
    notebook = cleaned(relative(with_output("wrote /tmp/x/onehead/runs/a.png\n"), Path("/tmp/x/onehead")))
    assert notebook.cells[0].outputs[0].text == "wrote runs/a.png\n"
    assert "execution" not in notebook.cells[0].metadata
    with pytest.raises(UserError, match=r"/usr/lib/python3/x\.py"):
        cleaned(with_output("warning in /usr/lib/python3/x.py"))
    cleaned(with_output("see https://example.org/a/b/c and 1/2"))


def test_a_cell_that_failed_is_not_stored() -> None:
    notebook = with_output("")
    notebook.cells[0].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]
    with pytest.raises(UserError, match="ValueError: no"):
        cleaned(notebook)
