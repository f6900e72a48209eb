"""What exporting costs in scores: a checkpoint and its ONNX files in float32, float16 and int8, on the same images.

python -m scripts.score_exports --weights weights/onehead.pt --int8 data/mini_coco_det/train --json results/exports.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.catalog import load_set
from data.types import TASKS
from engine.evaluation.evaluate import Evaluator, Model
from engine.export import export
from engine.speed.int8 import calibration_images
from engine.speed.onnx_model import OnnxModel
from engine.storage.checkpoint import load_model, provenance
from engine.storage.device import cpu_name
from engine.storage.errors import run_cli
from engine.storage.files import write_text
from models.deploy import LastLayer
from scripts.report.speed import SCORES, exports_table


def main(argv: Sequence[str] | None = None) -> int:
    """Export in every way, score, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of the model")
    parser.add_argument("--data_root", default="data", help="folder that holds the three sets")
    parser.add_argument("--int8", type=Path, required=True, metavar="FOLDER", help="pictures to calibrate on")
    parser.add_argument("--json", type=Path, help="where the record goes")
    args = parser.parse_args(argv)
    model = load_model(args.weights)
    evaluator = Evaluator(
        {task: load_set(args.data_root, task, None, model.classes[task]) for task in TASKS}, model.input_size
    )
    rows = [scored("torch, float32", LastLayer(model), Path(args.weights), evaluator)]
    ways: dict[str, dict[str, Any]] = {"float32": {}, "float16": {"half": True}}
    ways["int8"] = {"calibration": calibration_images(args.int8, model.input_size)}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in ways.items():
            path = Path(folder) / f"{name}.onnx"
            export(model, path, **options)
            rows.append(scored(f"ONNX, {name}", OnnxModel(path), path, evaluator))
    words = sys.argv[1:] if argv is None else argv
    record = {"command": " ".join(["python -m scripts.score_exports", *words]), "size": model.input_size}
    record |= {"processor": cpu_name(), **provenance(), "rows": rows}
    print(exports_table(record))
    if args.json:
        write_text(args.json, json.dumps(record, indent=1) + "\n")
    return 0


def scored(name: str, model: Model, file: Path, evaluator: Evaluator) -> dict[str, Any]:
    """A model's size in megabytes and its scores."""
    scores = evaluator.run(model).scores
    return {"model": name, "megabytes": round(file.stat().st_size / 1e6, 2), **{k: round(scores[k], 4) for k in SCORES}}


if __name__ == "__main__":
    sys.exit(run_cli(main))
