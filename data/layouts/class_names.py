"""Files that name the classes of a set, as usual tools write them: what they are called and how they are read."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data.classes import normal_name, one_form, voc_palette
from data.errors import DataError
from data.images import IMAGE_SUFFIXES
from data.types import VOID, MaskCoding

Colour = tuple[int, int, int]
MASK_FILES = (
    *("classes.txt", "labelmap.txt", "_classes.csv", "class_dict.csv", "class_dict_seg.csv", "classes.csv"),
    *("labels.csv", "labels.txt", "class_names.txt", "names.txt", "label_names.txt", "label_colors.txt", "obj.names"),
    *("classes.names", "classes.json", "id2label.json", "label_map.json", "meta.json", "codes.txt", "labels.json"),
    *("categories.json", "class_names.json", "palette.json", "classes.yaml", "classes.yml"),
)
"""Names of such files beside masks, the likely ones first; only the first must hold names, whatever else it is."""
BOX_FILES = (
    *("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "classes.names", "_darknet.labels"),
    *("labels.txt", "predefined_classes.txt", "class_names.txt", "names.txt"),
)
"""The same for text files of boxes."""
_MAX_BYTES = 500_000
IGNORED = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown", "border"})
"""Names of what counts as no class."""
BACKGROUND = frozenset({"background", "bg"})
"""Names of what is no object."""


@dataclass(frozen=True)
class ClassNames:
    """Classes in their order, what a mask holds of them, and the file that lists them (None: there is none)."""

    names: tuple[str, ...]
    coding: MaskCoding = field(default_factory=MaskCoding)
    source: Path | None = None


@dataclass(frozen=True)
class _Entry:
    """One class as a file lists it."""

    name: str
    value: int | None = None
    colour: Colour | None = None


def find_names(folders: Iterable[Path], files: Sequence[str] = MASK_FILES) -> ClassNames | None:
    """Read the first file of `files`, in whatever case, that names classes in one of `folders`; None if there is none.

    Raises DataError for a `classes.txt` that is empty, repeats a name, or names more than 255 classes.
    """
    for folder in dict.fromkeys(folders):
        try:
            there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
        except OSError:
            continue
        named = [name for name in files if name in there]
        if files is BOX_FILES:  # the file that a YOLO program is given may have any name
            named += sorted(name for name in there.keys() - set(named) if name.endswith((".yaml", ".yml")))
        for path in map(there.__getitem__, named):
            found = read_names(path, alone=files is not MASK_FILES)
            if found is not None:
                return found
    return None


def read_names(path: Path, alone: bool = False) -> ClassNames | None:
    """Read one file of class names; None if it is about something else. `alone`: one class is enough."""
    strict = path.name.lower() == "classes.txt"
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        entries = _entries(path)
    except UnicodeDecodeError as error:
        if not strict:
            return None
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8, one class name per line") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError, csv.Error):
        return None
    names = [one_form(entry.name).strip() for entry in entries]
    values = [entry.value for entry in entries if entry.value is not None]
    colours = [entry.colour for entry in entries if entry.colour is not None]
    by_name = [] if alone else [normal_name(name) for name in names]
    different = all(len(set(some)) == len(some) for some in (by_name, values, colours))
    different &= all(value < 1 << 16 for value in values) and all(max(colour) <= VOID for colour in colours)
    if not (1 if alone else 2) <= len(names) <= VOID or not different:
        if strict:
            raise DataError(f"{path}: {len(names)} names; write 2 to {VOID} different ones, background first")
        return None
    return _coded([_Entry(name, e.value, e.colour) for name, e in zip(names, entries)], path)


def _entries(path: Path) -> list[_Entry]:
    """Parse a file by its ending. Raises ValueError and what the parsers raise."""
    text, suffix = path.read_text(encoding="utf-8-sig"), path.suffix.lower()
    if suffix == ".csv":
        mark = max(",;\t", key=text.count)
        return _from_table(list(csv.reader(text.splitlines(), delimiter=mark, skipinitialspace=True)))
    if suffix in (".yaml", ".yml"):
        tree = yaml.safe_load(text)
        return _from_tree({"names": tree.get("names", tree.get("classes"))} if isinstance(tree, dict) else tree)
    if suffix == ".json":
        return _from_tree(json.loads(text))
    return _from_lines([line.strip() for line in text.splitlines() if line.strip()])


_CVAT = re.compile(r"([^:]+):(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3}):[^:]*:[^:]*")
_COLOUR_FIRST = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,:]+(\S.*)")
_NUMBERED = re.compile(r"(\d{1,5})(?:\s*[:,;=]\s*|\s+)(\S.*)")


def _from_lines(lines: list[str]) -> list[_Entry]:
    """Read one class a line: its name, or `number: name`, `red green blue name`, or CVAT's `name:r,g,b::`."""
    plain = [line for line in lines if not line.startswith("# label:")]
    cvat = [_CVAT.fullmatch(line) for line in plain]
    if plain and all(cvat):
        return [_Entry(m[1].strip(), colour=(int(m[2]), int(m[3]), int(m[4]))) for m in cvat if m]
    coloured = [_COLOUR_FIRST.fullmatch(line) for line in plain]
    if plain and all(coloured):
        return [_Entry(m[4], colour=(int(m[1]), int(m[2]), int(m[3]))) for m in coloured if m]
    numbered = [m for m in map(_NUMBERED.fullmatch, plain) if m]
    if len(numbered) == len(plain) > 1 and len({m[1] for m in numbered}) == len({m[2] for m in numbered}) == len(plain):
        return [_Entry(m[2], int(m[1])) for m in numbered]
    return [_Entry(line) for line in plain if line != "__ignore__"]  # LabelMe's first line, which stands for -1


_VALUE_WORDS = frozenset({"value", "pixel", "id", "index", "label_id", "class_id", "pixel value"})


def _from_table(rows: list[list[str]]) -> list[_Entry]:
    """Read columns of names beside values or colours, with or without a head."""
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return []
    head = [cell.lower() for cell in rows[0]]
    if not any(cell.isdecimal() for cell in head):
        rows = rows[1:]
    width = len(head)
    if any(len(row) != width for row in rows):
        raise ValueError("rows of different length")
    numeric = [k for k in range(width) if all(row[k].isdecimal() for row in rows)]
    naming = [k for k in range(width) if k not in numeric]
    if len(naming) != 1 or not rows:
        raise ValueError("no column of names")
    if len(numeric) >= 3:
        r, g, b = ([k for k in numeric if head[k] not in _VALUE_WORDS] + numeric)[:3]
        return [_Entry(row[naming[0]], colour=(int(row[r]), int(row[g]), int(row[b]))) for row in rows]
    return [_Entry(row[naming[0]], int(row[numeric[0]]) if numeric else None) for row in rows]


def _from_tree(tree: Any) -> list[_Entry]:
    """Read a list of names or of objects with names, a mapping of names and numbers or colours, or what holds one.

    What holds annotations too is about boxes.
    """
    if isinstance(tree, dict) and "annotations" not in tree:
        for key in ("names", "classes", "labels", "categories"):
            if isinstance(tree.get(key), (list, dict)):
                return _from_tree(tree[key])
        return _from_pairs({str(key): value for key, value in tree.items()})
    if not isinstance(tree, list):
        raise ValueError("no names")
    return [_from_object(entry) if isinstance(entry, dict) else _Entry(str(entry)) for entry in tree]


_FIGURES = re.compile(r"(?:^|[_ -])(?:num|counts?|total|seed|width|height|version)(?:$|[_ -])", re.IGNORECASE)
"""What files about a set call the figures that they hold; no class is called so."""


def _from_pairs(tree: dict[str, Any]) -> list[_Entry]:
    """Read a mapping number -> name, name -> number or name -> red, green, blue."""
    if all(isinstance(value, list) and [type(v) for v in value] == [int] * 3 for value in tree.values()):
        return [_Entry(name, colour=(red, green, blue)) for name, (red, green, blue) in tree.items()]
    pairs = [(key, str(value)) for key, value in tree.items() if not isinstance(value, (list, dict))]
    if len(pairs) == len(tree) and all(key.isdecimal() for key, _ in pairs):
        return [_Entry(name, int(number)) for number, name in pairs]
    if any(PurePosixPath(key).suffix.lower() in IMAGE_SUFFIXES or _FIGURES.search(key) for key, _ in pairs):
        raise ValueError("figures of a set or labels of files")
    if len(pairs) == len(tree) and all(number.isdecimal() for _, number in pairs):
        return [_Entry(name, int(number)) for name, number in pairs]
    raise ValueError("no names")


def _from_object(entry: dict[str, Any]) -> _Entry:
    name, number = entry.get("name", entry.get("title")), entry.get("id")
    if not isinstance(name, str):
        raise ValueError("no name")
    colour = re.fullmatch(r"#([0-9a-fA-F]{6})", str(entry.get("color")))
    if colour is None:
        return _Entry(name, number if isinstance(number, int) and 0 <= number < 1 << 16 else None)
    red, green, blue = bytes.fromhex(colour[1])
    return _Entry(name, colour=(red, green, blue))


def _coded(entries: list[_Entry], path: Path) -> ClassNames:
    """Put the background first and describe what masks hold, as far as it is not simply the index."""
    entries = _background_first(entries)
    if all(entry.value is not None for entry in entries):
        return _by_value(entries, path)
    if any(entry.colour is None for entry in entries):
        return ClassNames(tuple(entry.name for entry in entries), source=path)
    ignored = {e.colour: VOID for e in entries if e.colour is not None and normal_name(e.name) in IGNORED}
    entries = [entry for entry in entries if entry.colour not in ignored]
    names = tuple(entry.name for entry in entries)
    colours = {entry.colour: index for index, entry in enumerate(entries) if entry.colour is not None} | ignored
    values = {entry.value: index for index, entry in enumerate(entries) if entry.value is not None}
    return ClassNames(names, MaskCoding(values or None, colours), path)


def _background_first(entries: list[_Entry]) -> list[_Entry]:
    """Move the background to the front; its position in the file stays its value in a mask."""
    if any(entry.colour is None for entry in entries):
        return entries
    for position, entry in enumerate(entries):
        if normal_name(entry.name) in BACKGROUND and position:
            valued = [_Entry(e.name, number, e.colour) for number, e in enumerate(entries)]
            return [valued[position], *valued[:position], *valued[position + 1 :]]
    return entries


def _by_value(entries: list[_Entry], path: Path) -> ClassNames:
    """Order classes by their values; a value for what is to be ignored is void."""
    ordered = sorted(entries, key=lambda entry: entry.value or 0)
    if entries[0].colour is not None:
        ordered = entries
    classes = [e for e in ordered if not (normal_name(e.name) in IGNORED and e.value == VOID)]
    meaning = {e.value or 0: index for index, e in enumerate(classes)}
    colours = {e.colour: index for index, e in enumerate(classes) if e.colour is not None}
    same = all(value == index for value, index in meaning.items())
    coding = MaskCoding(None if same else meaning, colours or None)
    return ClassNames(tuple(e.name for e in classes), coding, path)


def for_classes(own: ClassNames, positions: Sequence[int]) -> MaskCoding:
    """Return the coding of masks whose class k is to be index `positions[k]`."""

    def moved(meaning: Mapping[Any, int]) -> dict[Any, int]:
        return {key: positions[index] if index < len(positions) else VOID for key, index in meaning.items()}

    palette = voc_palette().tolist()
    values = own.coding.values or {index: index for index in range(len(positions))}
    colours = own.coding.colours or {tuple(palette[index]): index for index in (*range(len(positions)), VOID)}
    return MaskCoding(moved(values), moved(colours))
