"""Writing files without ever leaving half of one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from engine.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once. Raises UserError naming the file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}. Free space or choose another folder with --runs"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
