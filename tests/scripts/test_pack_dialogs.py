from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest

from engine.storage.errors import UserError
from scripts.pack_dialogs import ROOT, main, pack

WHOLE = {"issue": 2, "title": "t", "prompt": "p", "response": "r"}


def folder(path: Path, **dialogues: object) -> Path:
    (path / "README.md").write_text("what this is")
    for name, content in dialogues.items():
        (path / f"{name.removeprefix('d').replace('_', '-')}.json").write_text(json.dumps(content))
    return path


def test_the_archive_in_the_repository_is_that_of_the_folder() -> None:
    assert (ROOT / "llm_dialogs.zip").read_bytes() == pack(ROOT / "llm_dialogs"), "run python -m scripts.pack_dialogs"


def test_same_content_same_bytes_whatever_the_dates(tmp_path: Path) -> None:
    where = folder(tmp_path, d2_a=WHOLE, d10_b=WHOLE)
    first = pack(where)
    os.utime(where / "2-a.json", (1, 1))
    (where / "10-b.json").chmod(0o600)
    assert pack(where) == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.namelist() == [f"llm_dialogs/{n}" for n in ("README.md", "2-a.json", "10-b.json")]
        assert json.loads(archive.read("llm_dialogs/2-a.json")) == WHOLE


def test_a_dialogue_without_its_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2-a\.json lacks response"):
        pack(folder(tmp_path, d2_a={**WHOLE, "response": ""}))
    (tmp_path / "2-a.json").write_text("{")
    with pytest.raises(UserError, match=r"2-a\.json cannot be read as JSON"):
        pack(tmp_path)


def test_the_command_writes_the_file(tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    assert main(["--folder", str(folder(tmp_path, d2_a=WHOLE)), "--out", str(out)]) == 0
    assert out.read_bytes() == pack(tmp_path)
