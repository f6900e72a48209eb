"""Writing files without ever leaving half of one, and a run's folder for one run at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from engine.storage.errors import UserError

LOCK = ".lock"


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once. Raises UserError naming the file."""
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file at once, its folder made if need be. Raises OSError, and leaves what was there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def own_json(path: Path, key: str) -> bool:
    """Whether a path may be written to: nothing is there, or an earlier result, JSON that has `key` at some level."""
    if not path.is_file() or not path.stat().st_size:
        return True
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict) and f'"{key}"' in path.read_text()
    except (OSError, ValueError, RecursionError):
        return False


def cannot_write(path: Path, error: OSError, kept: str = "") -> UserError:
    """The error that says which file of a run could not be written, why, and what is `kept`."""
    return UserError(f"cannot write {path}: {error.strerror}{kept}. Free space or choose another folder with --runs")


def first_process() -> bool:
    """Whether this is the first, or only, of the processes of a run."""
    return not int(os.environ.get("RANK", "0"))


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Work in a run's folder while no other run does; the system frees it however this process ends.

    Of several processes of one run the first holds the folder for all. What a killed run left half written is
    cleared away; a folder in which nothing came about is taken away again. Raises UserError when another run is at
    work there, or when the folder cannot be written.
    """
    if not first_process():
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another run is at work there; stop it, or give another --name") from None
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from None
    try:
        for left in folder.glob("*.tmp"):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
        with suppress(OSError):  # the folder may be gone by now
            if new and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                for path in new:
                    path.rmdir()
