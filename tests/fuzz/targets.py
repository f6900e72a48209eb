"""Everything that reads what others have written, each as a function of one input's bytes and an empty folder.

A target may refuse its input with the program's own errors; anything else that it raises is a find.
"""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from data.catalog import load_set
from data.errors import DataError
from data.images import image_orientation, image_size, looks_like_mask, read_image, read_mask
from data.layouts.coco import load_document, read_boxes
from data.layouts.search import find_set
from data.layouts.tree import Found
from data.types import TASKS, VOID, TaskSet
from engine.evaluation.leakage import listed
from engine.settings.config import Config, to_dict
from engine.settings.options import Parser, build_parser, to_config
from engine.storage.checkpoint import FORMAT, build_model, load, model_content, save
from engine.storage.errors import UserError
from models.onehead import ModelConfig, OneHead
from tests.data.builders import annotation, coco, draw_image, draw_mask

NAMES = (
    *("train", "val", "test", "mini_coco_det", "voc", "imagenette", "images", "masks", "annotations", "tench", "dog"),
    *("a.jpg", "b.jpg", "a.png", "b_mask.png", "annotations.json", "instances_val.json", "classes.txt", "val.txt"),
)
"""Folders and files of which trees are made, by the byte that stands for them."""


VALUES = (
    *(None, True, -1, 0, 1, 2, 7, 3000, 2**63, 10**30, 0.5, 1e308, 5e-324, math.nan, math.inf),
    *("", "1", "a", "cat", "\ud800", "../../a.jpg", "1" * 5000),
    *([], [1], [[]], [0, 0, 9, 9], {}, {"name": "cat"}, {"id": 1}),
)
"""What may stand where something else is expected."""


def altered(tree: Any, data: bytes) -> Any:
    """A nested value with up to 15 nodes replaced; of four bytes three choose the way down, one the value."""
    for i in range(0, min(len(data), 60) - 3, 4):
        node, key = tree, None
        for step in data[i : i + 3]:
            inner = node if key is None else node[key]
            keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            if not keys:
                break
            node, key = inner, keys[step % len(keys)]
        if key is not None:
            node[key] = copy.deepcopy(VALUES[data[i + 3] % len(VALUES)])
    return tree


def document() -> dict[str, Any]:
    """An annotation file in order."""
    boxes = [annotation(1, 7, [1, 2, 10, 8], area=80.0), annotation(2, 3, [2.5, 3, 4, 5], iscrowd=1)]
    return coco(["a.jpg", "sub\\b.jpg"], boxes, {7: "cat", 3: {"name": "dog"}})


@cache
def model() -> dict[str, Any]:
    """Content of a checkpoint in order."""
    torch.manual_seed(0)
    network = OneHead(
        ModelConfig(dim=32, heads=2, hidden=64, queries=5), {"det": ["a"], "seg": ["b"], "cls": ["c"]}, 64
    )
    return {**model_content(network), "training_images": ["00"]}


def coco_altered(data: bytes, folder: Path) -> None:
    """An annotation file with odd values in it."""
    coco_json(json.dumps(altered(document(), data)).encode(), folder)


def config_altered(data: bytes, folder: Path) -> None:
    """A configuration file with odd values in it; as in users' files, sections left as they are do not appear."""
    default = to_dict(Config())
    odd = altered(to_dict(Config()), data)
    changed = {key: value for key, value in odd.items() if repr(value) != repr(default[key])}  # True equals 1
    config(yaml.safe_dump(changed).encode(), folder)


def checkpoint_altered(data: bytes, folder: Path) -> None:
    """A checkpoint with odd values in it; its weights, which are many bytes, do not go through the file."""
    weights, rest = dict(model()["model"]), {k: v for k, v in model().items() if k != "model"}
    content = altered({"model": weights, "format": FORMAT, **copy.deepcopy(rest)}, data)
    torch.save({k: v for k, v in content.items() if v is not weights}, folder / "model.pt")
    content |= load(folder / "model.pt")
    listed(content)
    build_model(content, "model.pt")


def coco_json(data: bytes, folder: Path) -> None:
    """An annotation file: boxes lie inside their image, labels among the classes."""
    path = folder / "annotations.json"
    path.write_bytes(data)
    images = tuple(draw_image(folder / name) for name in ("a.jpg", "b.jpg"))
    found = Found("det", "val", "", folder, images, path, load_document(path))
    check_boxes(read_boxes(found))


def yolo_text(data: bytes, folder: Path) -> None:
    """A text file of boxes beside its image, as YOLO writes them."""
    draw_image(folder / "images" / "a.jpg")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_bytes(data)
    (folder / "classes.txt").write_text("cat\ndog\n")
    check_boxes(load_set(folder, "det"))


def voc_xml(data: bytes, folder: Path) -> None:
    """An XML file of boxes beside its image, as Pascal VOC has them."""
    draw_image(folder / "a.jpg")
    (folder / "a.xml").write_bytes(data)
    check_boxes(load_set(folder, "det"))


def check_boxes(task_set: TaskSet) -> None:
    """Boxes are finite and lie within their image, which has the size of the drawn ones; labels are known."""
    for record in task_set.records:
        assert torch.isfinite(record.boxes).all()
        assert torch.isfinite(record.area).all()
        assert (record.boxes[:, 2:] >= record.boxes[:, :2]).all()
        assert (record.boxes >= 0).all()
        assert (record.boxes <= torch.tensor([32.0, 24.0, 32.0, 24.0])).all()
        assert (record.labels < len(task_set.classes) + len(task_set.unknown)).all()


def mask(data: bytes, folder: Path) -> None:
    """An image file, read as photograph and as mask."""
    path = folder / "a.png"
    path.write_bytes(data)
    looks_like_mask(path)
    width, height = image_size(path)
    assert 1 <= image_orientation(path) <= 8
    assert read_image(path).mode == "RGB"
    values = read_mask(path, 21)
    assert values.shape == (height, width)
    assert ((values < 21) | (values == VOID)).all()


def layout(data: bytes, folder: Path) -> None:
    """A tree of folders: every byte is a name, a zero begins the next path."""
    for part in data[:60].split(b"\0"):
        names = [NAMES[byte % len(NAMES)] for byte in part[:6]]
        path = folder.joinpath(*names)
        if names and "." in names[-1] and not any("." in name for name in names[:-1]) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[-40:])
    for task in TASKS:
        try:
            found = find_set(folder, task, (None, "train", "val")[len(data) % 3])
        except DataError:
            continue
        assert all(image.is_file() for image in found.images)
        load_set(folder, task, found.split if found.split != "all" else None)


@cache
def cached_parser() -> Parser:
    """The parser of the configuration, which takes longer to build than to use."""
    return build_parser("fuzz", "")


def config(data: bytes, folder: Path) -> None:
    """A configuration file."""
    path = folder / "config.yaml"
    path.write_bytes(data)
    parser = cached_parser()
    to_config(parser, parser.parse_args(["--config", str(path)]))


def checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint: as it is, and as the pickle inside an archive that is otherwise in order."""
    path = folder / "model.pt"
    path.write_bytes(data)
    if not data.startswith(b"PK"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", data)
            archive.writestr("model/byteorder", "little")
            archive.writestr("model/version", "3\n")
            for number in range(4):
                archive.writestr(f"model/data/{number}", bytes(64))
    content = load(path)
    listed(content)
    build_model(content, str(path))


TARGETS: tuple[Callable[[bytes, Path], None], ...] = (
    *(coco_json, mask, layout, config, checkpoint),
    *(coco_altered, config_altered, checkpoint_altered),
    *(yolo_text, voc_xml),
)
REFUSALS = (DataError, UserError)


def seeds(folder: Path) -> list[tuple[int, bytes]]:
    """Valid inputs to begin with: the target's number and its bytes."""
    pictures = {"P": "png", "L": "png", "RGB": "jpeg", "I;16": "png", "1": "bmp", "RGBA": "webp", "CMYK": "tiff"}
    found = [(0, json.dumps(document()).encode())]
    for mode, kind in (*pictures.items(), ("P", "gif"), ("RGB", "ppm")):
        buffer = io.BytesIO()
        Image.new(mode, (4, 3), 1 if len(Image.new(mode, (1, 1)).getbands()) == 1 else None).save(buffer, kind)
        found.append((1, buffer.getvalue()))
    found.append((1, draw_mask(folder / "mask.png").read_bytes()))
    for paths in ([[3, 0, 6, 11], [3, 0, 15]], [[4, 1, 6, 11], [4, 1, 7, 13]], [[5, 0, 9, 11], [5, 1, 10, 12]]):
        found.append((2, b"\0".join(bytes(path) for path in paths)))
    for settings in ({"seed": 1, "optim": {"lr": 0.1}}, {"order": ["seg"], "data": {"augment": {"scale": [1, 2]}}}):
        found.append((3, yaml.safe_dump(settings).encode()))
    small = {"classes": {"det": ["a"]}, "model": {"w": torch.zeros(2, 2)}, "architecture": {"dim": 32}}
    for number, content in enumerate((model(), small)):
        save(folder / f"{number}.pt", content)
        with zipfile.ZipFile(folder / f"{number}.pt") as archive:
            pickled = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
            found.append((4, archive.read(pickled)))
    found.append((4, (folder / "1.pt").read_bytes()))
    found += [(8, b"0 0.5 0.5 0.2 0.25\n1 0.3 0.3 0.1 0.1\n"), (8, b"1 0.1 0.1 0.6 0.2 0.5 0.8\n")]
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>8</ymax></bndbox>"
    size = "<size><width>32</width><height>24</height><depth>3</depth></size>"
    thing = f"<object><name>cat</name><difficult>1</difficult>{box}</object>"
    found.append((9, f"<annotation><filename>a.jpg</filename>{size}{thing}</annotation>".encode()))
    return [*found, *((number, content) for number in (5, 6, 7) for content in (b"", bytes(4)))]
