"""Write the name list `data/manifests/mini.json` from the three mini sets on disk.

python scripts/make_manifest.py --root data --out data/manifests/mini.json

Needed only when the sets themselves change. The list holds names, SHA-256 sums and, for detection, the boxes
(COCO 2017 annotations, CC BY 4.0): no image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ABOUT = (
    "The images of the three mini sets: official name, SHA-256 of the file, origin. Boxes are annotations of "
    "COCO 2017 (cocodataset.org, CC BY 4.0), [category id, x, y, width, height, area, iscrowd] in pixels."
)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _detection(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    truth = json.loads((folder / "annotations.json").read_text())
    boxes: dict[int, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for a in truth["annotations"]:
        boxes[a["image_id"]].append([a["category_id"], *a["bbox"], a["area"], a["iscrowd"]])
    images = {
        image["file_name"]: {
            "sha256": _sha256(folder / "images" / image["file_name"]),
            "from": image["coco_url"].split("/")[-2].removesuffix("2017") if "coco_url" in image else None,
            "size": [image["width"], image["height"]],
            "boxes": boxes[image["id"]],
        }
        for image in truth["images"]
    }
    return images, truth["categories"]


def _segmentation(folder: Path) -> dict[str, Any]:
    return {
        path.stem: {"image": _sha256(path), "mask": _sha256(folder / "masks" / f"{path.stem}.png")}
        for path in sorted((folder / "images").glob("*.jpg"))
    }


def _classification(folder: Path) -> dict[str, Any]:
    # both parts of the mini set were drawn from the official part of the same name
    return {
        f"{path.parent.name}/{path.name}": {"sha256": _sha256(path), "from": folder.name}
        for path in sorted(folder.glob("n*/*.JPEG"))
    }


def compact(manifest: dict[str, Any]) -> str:
    """JSON with one line per image, so that a change of the list reads well in a diff."""
    lines = []
    for key, value in manifest.items():
        if key not in ("seg", "det", "cls"):
            lines.append(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}")
            continue
        splits = []
        for split, images in value.items():
            rows = (json.dumps({name: row}, separators=(",", ":"))[1:-1] for name, row in images.items())
            splits.append(f"{json.dumps(split)}:{{\n" + ",\n".join(rows) + "\n}")
        lines.append(f"{json.dumps(key)}:{{\n" + ",\n".join(splits) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the name list from the mini sets on disk.")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the three sets")
    parser.add_argument("--out", type=Path, default=Path("data/manifests/mini.json"))
    args = parser.parse_args()
    splits = ("train", "val")
    detection = {split: _detection(args.root / "mini_coco_det" / split) for split in splits}
    manifest = {
        "format": 1,
        "about": ABOUT,
        "categories": detection["train"][1],
        "det": {split: detection[split][0] for split in splits},
        "seg": {split: _segmentation(args.root / "mini_voc_seg" / split) for split in splits},
        "cls": {split: _classification(args.root / "imagenette_160" / split) for split in splits},
    }
    args.out.write_text(compact(manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
