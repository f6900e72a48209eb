"""Leakage: which images a model was trained on, so that an evaluation on them is not taken for one on new images.

A checkpoint lists, under "training_images", a digest of the content of every training image file: a copy under another
name is recognised, an image that was encoded anew is not. Photographs of stage 0 are not listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.errors import DataError

DIGITS = 16
"""Hexadecimal digits kept of a SHA-256: 64 bits, enough for billions of files without a chance hit."""


def digest(path: Path) -> str:
    """What stands for the content of a file. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error


def digests(paths: Iterable[Path]) -> list[str]:
    """Digests of files, sorted, each once."""
    return sorted(set(map(digest, paths)))


def listed(content: dict[str, Any]) -> set[str] | None:
    """The digests that a checkpoint lists; None if it has no such list."""
    found = content.get("training_images")
    return {entry for entry in found if isinstance(entry, str)} if isinstance(found, list) else None


def trained_on(paths: Iterable[Path], content: dict[str, Any]) -> list[Path] | None:
    """Those files whose content the model of a checkpoint was trained on; None if it has no list."""
    known = listed(content)
    return None if known is None else [path for path in paths if digest(path) in known]
