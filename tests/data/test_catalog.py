from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from data.catalog import MAX_NOTES, holdout, load_set, summary
from data.types import Fold
from tests.data.builders import cls_set, det_set, seg_set

IMAGENETTE_IDS = ("n01440764", "n02102040", "n02979186")


def test_holdout_is_fixed_and_covers_the_set(tmp_path: Path) -> None:
    cls_set(tmp_path, "{split}", "train", IMAGENETTE_IDS)
    whole = load_set(tmp_path, "cls", "train")
    fit, choose = (load_set(tmp_path, "cls", "train", part=part) for part in ("fit", "choose"))
    assert len(choose.records) == 1
    assert len(fit.records) == 5
    assert {r.image for r in fit.records} | {r.image for r in choose.records} == {r.image for r in whole.records}
    assert fit.classes == whole.classes
    # found with the command sha256sum: it has the smallest hash, 2b2b65a4...
    assert holdout(whole, "choose").records[0].image.stem == "train_n02979186_0"
    held = [holdout(whole, "choose", fold).records for fold in get_args(Fold)]
    assert sorted(r.image for part in held for r in part) == sorted(r.image for r in whole.records)  # each once


def test_of_few_images_one_is_held_back(tmp_path: Path) -> None:
    cls_set(tmp_path, "{split}", "train", IMAGENETTE_IDS)
    whole = load_set(tmp_path, "cls", "train")
    for count, left in ((1, 0), (2, 1), (3, 2), (5, 4)):
        few = replace(whole, records=whole.records[:count])
        for fold in get_args(Fold):
            assert len(holdout(few, "choose", fold).records) == 1
            assert len(holdout(few, "fit", fold).records) == left


def test_summary_counts_boxes_pixels_and_images(tmp_path: Path) -> None:
    det_set(tmp_path / "mini_coco_det", "{split}/images", "{split}/annotations.json", "val")
    seg_set(tmp_path / "mini_voc_seg", "{split}/images", "{split}/masks", "val")
    cls_set(tmp_path / "imagenette_160", "{split}", "val", IMAGENETTE_IDS)
    det, seg, cls = (summary(load_set(tmp_path, task)).splitlines() for task in ("det", "seg", "cls"))
    assert det[0] == "det  val: 3 images, 2 classes"
    assert "mini_coco_det/val/annotations.json" in det[1]
    assert det[2].strip() == "boxes per class (0 of them crowd; 1 images without box)"
    assert [line.split() for line in det[3:5]] == [["cat", "1", "50.0%"], ["dog", "1", "50.0%"]]
    # 12 x 6 person pixels within 14 x 8, the rest of which is void, on 32 x 24, three times
    assert next(line.split() for line in seg if "person" in line) == ["person", "216", "9.9%"]
    assert "5.2% of all are void" in seg[2]
    assert cls[3].split() == ["tench", "2", "33.3%"]


def test_summary_shortens_many_notes(tmp_path: Path) -> None:
    cls_set(tmp_path, "{split}", "val", IMAGENETTE_IDS)
    found = load_set(tmp_path, "cls", "val", ("tench",))
    lines = summary(replace(found, notes=tuple(f"remark {n}" for n in range(MAX_NOTES + 3)))).splitlines()
    assert lines[-1].split(maxsplit=1) == ["note", "and 3 more"]
    assert sum("remark" in line for line in lines) == MAX_NOTES
    assert any("English springer (unknown)" in line for line in lines)
