"""Pack llm_dialogs/ into llm_dialogs.zip, the same bytes for the same content: `python -m scripts.pack_dialogs`."""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from engine.storage.errors import UserError, run_cli

ROOT = Path(__file__).parents[1]
KEYS = ("issue", "title", "prompt", "response")
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The date of every file in the archive; the earliest that the format knows."""


def check(path: Path) -> None:
    """Raise UserError unless a file holds one piece of work: its issue, title, prompt and full response."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): mend or remove it") from None
    missing = [key for key in KEYS if not isinstance(content, dict) or not content.get(key)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: a dialogue holds {', '.join(KEYS)}")


def pack(folder: Path) -> bytes:
    """The archive of a folder's README.md and dialogues. Raises UserError for a dialogue that is not whole."""
    dialogues = sorted(folder.glob("[0-9]*-*.json"), key=lambda path: (int(path.name.split("-")[0]), path.name))
    if not dialogues:
        raise UserError(f"{folder} holds no dialogue (NUMBER-NAME.json)")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in [folder / "README.md", *dialogues]:
            if path in dialogues:
                check(path)
            entry = zipfile.ZipInfo(f"llm_dialogs/{path.name}", LONG_AGO)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every system
            archive.writestr(entry, path.read_bytes())  # stored, as compressors differ from version to version
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "llm_dialogs")
    parser.add_argument("--out", type=Path, default=ROOT / "llm_dialogs.zip")
    args = parser.parse_args(argv)
    args.out.write_bytes(pack(args.folder))
    print(f"{args.out}: {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
