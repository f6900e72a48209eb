"""Which file on disk an annotation file means: by its path, not by its stem alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from data.classes import one_form

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=[^.])")
"""What Label Studio puts before the name of an uploaded file."""


def file_forms(file_name: object) -> list[PurePosixPath]:
    """Return the paths that a listed name may stand for, the most literal first: as it is, then out of a URL."""
    text = str(file_name).replace("\\", "/").strip()
    texts = [text]
    try:
        url = urlsplit(text)
        texts += [*parse_qs(url.query).get("d", []), url.path]
    except ValueError:
        pass
    texts += [unquote(form) for form in texts if "%" in form]
    paths = [PurePosixPath(one_form(form)) for form in texts]
    paths += [path.with_name(_UPLOAD.sub("", path.name)) for path in paths if _UPLOAD.match(path.name)]
    return [path for path in dict.fromkeys(paths) if path.name]


def listed_folders(file_name: str) -> tuple[str, ...]:
    """Return the names of the folders in a listed path."""
    return PurePosixPath(file_name.replace("\\", "/")).parts[:-1]


def far_names(files: dict[str, Path], names: dict[str, str]) -> list[str]:
    """Return the keys of listed names that mean a file with which another listed name agrees better.

    Of `train/1.jpg` and `test/1.jpg` only one is the file `test/1.jpg`; the same holds for `1.png` and `1.jpg`.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for key, path in files.items():
        by_file[path].append(key)
    far = []
    for path, keys in by_file.items():
        if len({names[key] for key in keys}) > 1:
            close = {key: _closeness(path, names[key]) for key in keys}
            far += [key for key in keys if close[key] < max(close.values())]
    return far


def _closeness(path: Path, file_name: str) -> tuple[int, bool, bool]:
    """Return how well a listed name agrees with a file: in folders, then in ending, then in capitals."""
    plain = PurePosixPath(one_form(path.name))
    return max(
        (common_tail(path, form), form.name.casefold() == plain.name.casefold(), form.name == plain.name)
        for form in file_forms(file_name)
    )


class FileIndex:
    """Files on disk, found by a listed name in constant time."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._levels: list[tuple[Callable[[PurePosixPath], str], dict[str, list[Path]]]] = [
            (_name, defaultdict(list)), (_folded, defaultdict(list)), (_stem, defaultdict(list)),
        ]  # fmt: skip
        self.size = 0
        for path in paths:
            self.size += 1
            name = PurePosixPath(one_form(path.name))
            for key_of, files in self._levels:
                files[key_of(name)].append(path)

    def options(self, file_name: object) -> Iterator[tuple[Path, PurePosixPath, bool]]:
        """Yield every file that a listed name may mean, the form of the name, and whether its ending is another."""
        by_stem = self._levels[-1][1]
        for form in file_forms(file_name):
            for path in by_stem.get(_stem(form), ()):
                yield path, form, one_form(path.name).casefold() != _folded(form)

    def find(self, file_name: object) -> list[Path]:
        """Return the files that a listed name may mean: those whose folders agree best with it, mostly one or none.

        The name counts as it is, then whatever its case, then whatever its ending.
        """
        plain = PurePosixPath(one_form(str(file_name)))
        if plain.name in self._levels[0][1]:
            return _closest(self._levels[0][1][plain.name], plain)
        forms = file_forms(file_name)
        for key_of, files in self._levels:
            for form in forms:
                some = files.get(key_of(form))
                if some:
                    return _closest(some, form)
        return []


def _name(path: PurePosixPath) -> str:
    return path.name


def _folded(path: PurePosixPath) -> str:
    return path.name.casefold()


def _stem(path: PurePosixPath) -> str:
    return path.stem.casefold()


def _closest(files: list[Path], form: PurePosixPath) -> list[Path]:
    """Return those files that share most folder names with a path, counted from the file upwards."""
    if len(files) == 1:
        return files
    shared = [common_tail(path, form) for path in files]
    return [path for path, count in zip(files, shared) if count == max(shared)]


def common_tail(path: PurePath, form: PurePosixPath) -> int:
    """Count the folders that a file and a listed path share at their end, the file name left out."""
    shared = 0
    for one, other in zip(reversed(path.parts[:-1]), reversed(form.parts[:-1])):
        if one_form(one).casefold() != other.casefold():
            break
        shared += 1
    return shared
