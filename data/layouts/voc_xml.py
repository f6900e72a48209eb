"""Pascal VOC's XML files of boxes: one file per image, one `object` with `name` and `bndbox` each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data.errors import DataError
from data.layouts.tree import Found
from data.layouts.units import FRACTION, Units

_MAX_BYTES = 5_000_000
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_REMEDY = "use VOC's form: annotation, object, name, bndbox"


def looks_like_xml(path: Path) -> str | None:
    """Return what is wrong with an XML file that holds no VOC annotation, None if it does."""
    try:
        root = _root(path)
    except DataError as error:
        return str(error)
    if root.find("object/polygon") is not None and root.find("object/bndbox") is None:
        return f"{path}: holds LabelMe's polygons and no box; {_REMEDY}"
    return None


def _root(path: Path) -> ElementTree.Element:
    """Parse a file. Raises DataError if it is no VOC annotation, or defines entities, which may unpack to much."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES} bytes; {_REMEDY}")
        content = path.read_bytes()
        if b"<!ENTITY" in content:
            raise DataError(f"{path}: defines entities; {_REMEDY}")
        root = ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not valid XML ({error}); {_REMEDY}, or download it again") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: its root is {root.tag!r:.40}, not 'annotation'; {_REMEDY}")
    return root


def xml_document(found: Found) -> Found:
    """Read the XML files of a set into the form of a COCO file; classes are in alphabetical order."""
    images: list[dict[str, Any]] = []
    objects: list[tuple[int, str, str | None, list[float] | None]] = []
    for number, (image, file) in enumerate(found.pairs):
        root = _root(file)
        size = {key: _value(root.find(f"size/{key}")) for key in ("width", "height")}
        images.append({"id": number, "file_name": str(image), **size})
        objects += [(number, f"{file.name} object {k + 1}", *one) for k, one in enumerate(_objects(root))]
    ids = {name: k for k, name in enumerate(sorted({name for _, _, name, _ in objects if name}), 1)}
    annotations = [
        {"id": label, "image_id": number, "category_id": ids.get(name or "", "none"), "bbox": box}
        for number, label, name, box in objects
    ]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    numbers = [value for _, _, _, box in objects for value in box or ()]
    units = Units("corners", fractions=bool(numbers) and max(numbers) <= FRACTION)
    document = {"images": images, "annotations": annotations, "categories": categories}
    return replace(found, document=document, units=units)


def _objects(root: ElementTree.Element) -> Iterator[tuple[str | None, list[float] | None]]:
    """Yield name and x1 y1 x2 y2 of each object, None for what is missing or no number."""
    for entry in root.iter("object"):
        name = (entry.findtext("name") or "").strip() or None
        box = [_value(entry.find(f"bndbox/{side}")) for side in _SIDES]
        known = [value for value in box if value is not None]
        yield name, known if len(known) == 4 else None


def _value(element: ElementTree.Element | None) -> float | None:
    try:
        return None if element is None else float(element.text or "")
    except ValueError:
        return None
