"""A web server on localhost that misbehaves on request, and small made-up sources in official structure."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

VOC, NETTE, ZIP = "/voc.tar", "/imagenette2-160.tgz", "/annotations/annotations_trainval2017.zip"


class Server(ThreadingHTTPServer):
    """Serves `files`; closes each answer after `cut` bytes, `cuts` times; `ranges=False` ignores Range."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.once: dict[str, bytes] = {}
        self.cut: int | None = None
        self.cuts = 10**9
        self.ranges = True
        self.fail_first: int = 0
        self.log: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up early is part of the tests."""

    def asked(self, path: str) -> list[str | None]:
        """The Range headers of the requests for `path`."""
        return [span for name, span in self.log if name == path]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, span = self.server, self.headers.get("Range")
        server.log.append((self.path, span))
        if server.fail_first > 0:
            server.fail_first -= 1
            return self.send_error(503)
        whole = server.once.pop(self.path, server.files.get(self.path))
        if whole is None:
            return self.send_error(404)
        start = int(re.findall(r"\d+", span)[0]) if span and server.ranges else 0
        if span and server.ranges and start >= len(whole):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if span and server.ranges else 200)
        if span and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        body = whole[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut is not None and server.cuts > 0 and len(body) > server.cut:
            server.cuts -= 1
            body = body[: server.cut]
        self.wfile.write(body)
        self.close_connection = True


def picture(seed: int, kind: str = "JPEG", side: int = 24) -> bytes:
    """A drawn image; kind PNG gives a palette mask with classes 0, 1 and 255."""
    rng = np.random.default_rng(seed)
    if kind == "PNG":
        image = Image.fromarray(rng.choice(np.array([0, 1, 255], np.uint8), (side, side)), "P")
        image.putpalette([*range(256)] * 3)
    else:
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    """A tar of name -> content, or of ready-made headers (links and the like)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def voc_members(count: int = 8) -> dict[str, bytes]:
    """Images 2007_000000.., even ones in the training list, odd ones in validation; dogs and cats."""
    top, names = "VOCdevkit/VOC2012", [f"2007_{i:06d}" for i in range(count)]
    thing = {name: ("dog" if i % 4 < 2 else "cat") for i, name in enumerate(names)}
    members = {f"{top}/Annotations/{n}.xml": f"<object><name>{thing[n]}</name></object>".encode() for n in names}
    members |= {
        f"{top}/ImageSets/Segmentation/train.txt": "\n".join(names[::2]).encode(),
        f"{top}/ImageSets/Segmentation/val.txt": "\n".join(names[1::2]).encode(),
    }
    members |= {f"{top}/JPEGImages/{n}.jpg": picture(i) for i, n in enumerate(names)}
    return members | {f"{top}/SegmentationClass/{n}.png": picture(i, "PNG") for i, n in enumerate(names)}


def nette_members(count: int = 4) -> dict[str, bytes]:
    """`count` images for each of two classes in each official part."""
    members = {}
    for part in ("train", "val"):
        for k, wordnet in enumerate(("n01440764", "n03028079")):
            for i in range(count):
                seed = 1000 + 100 * k + 10 * (part == "val") + i
                members[f"imagenette2-160/{part}/{wordnet}/{wordnet}_{seed}.JPEG"] = picture(seed)
    return members


def coco_files(count: int = 8) -> dict[str, bytes]:
    """Images 1.. in train2017 and 101.. in val2017, persons and dogs in turn, with the annotations zip."""
    names = ((1, "person"), (2, "bicycle"), (18, "dog"))
    categories = [{"id": number, "name": name, "supercategory": "x"} for number, name in names]
    files, stream = {}, io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, first in (("train2017", 1), ("val2017", 101)):
            ids = range(first, first + count)
            files |= {f"/{folder}/{i:012d}.jpg": picture(i) for i in ids}
            images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 24, "height": 24} for i in ids]
            objects = [
                {"id": 9 * i, "image_id": i, "category_id": 18 if i % 2 else 1, "bbox": [1.5, 2, 10, 8.25],
                 "area": 50.123456, "iscrowd": 0, "segmentation": []}
                for i in ids
            ]  # fmt: skip
            objects.append({**objects[0], "id": 7, "category_id": 2})
            truth = {"images": images, "annotations": objects, "categories": categories}
            archive.writestr(f"annotations/instances_{folder}.json", json.dumps(truth))
    return files | {ZIP: stream.getvalue()}


def flags(server: Server) -> list[str]:
    """Command line that points at this server."""
    return [
        f"--coco-url={server.url}",
        f"--voc-url={server.url}{VOC}",
        f"--imagenette-url={server.url}{NETTE}",
    ]


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def sources() -> dict[str, bytes]:
    return coco_files() | {VOC: tar(voc_members()), NETTE: tar(nette_members(), "w:gz")}


def manifest() -> dict:
    """A name list over `sources()`: two training and one validation image per task."""
    coco, voc, nette = coco_files(), voc_members(), nette_members()

    def det(number: int, part: str) -> dict:
        path = f"/{part}2017/{number:012d}.jpg"
        boxes = [[1, 1.0, 2.0, 3.5, 4.0, 14.0, 0]]
        return {"sha256": sha(coco[path]), "from": part, "size": [24, 24], "boxes": boxes}

    def seg(name: str) -> dict:
        top = "VOCdevkit/VOC2012"
        image, mask = voc[f"{top}/JPEGImages/{name}.jpg"], voc[f"{top}/SegmentationClass/{name}.png"]
        return {"image": sha(image), "mask": sha(mask)}

    def cls(part: str, name: str) -> dict:
        return {"sha256": sha(nette[f"imagenette2-160/{part}/{name}"]), "from": part}

    tench = [f"n01440764/n01440764_{number}.JPEG" for number in (1000, 1001)]
    return {
        "format": 1,
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
        "det": {
            "train": {
                "000000000002.jpg": det(2, "train"),
                "000000000101.jpg": det(101, "val") | {"from": None},
            },
            "val": {"000000000102.jpg": det(102, "val")},
        },
        "seg": {
            "train": {"2007_000000": seg("2007_000000"), "2007_000003": seg("2007_000003")},
            "val": {"2007_000005": seg("2007_000005")},
        },
        "cls": {
            "train": {name: cls("train", name) for name in tench},
            "val": {"n03028079/n03028079_1110.JPEG": cls("val", "n03028079/n03028079_1110.JPEG")},
        },
    }
