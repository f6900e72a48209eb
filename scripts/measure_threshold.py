"""Measure from which score on a network's boxes are worth showing, and write that into its checkpoint.

python -m scripts.measure_threshold weights/onehead.pt --data_root data/dev

The threshold is the lowest at which half of the boxes shown are right (IoU 0.5, right class), over all classes, on
images that did not train the network and, better, did not choose it. `engine.predict`, the page of `engine.demo`,
reports and W&B use it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data.catalog import load_set
from engine.evaluation.average_precision import DetectionTally
from engine.evaluation.evaluate import Evaluator
from engine.storage.checkpoint import load_model, load_stored, save
from engine.storage.device import pick_device
from engine.storage.errors import UserError, run_cli

PRECISION = 0.5
"""Share of right boxes among those that are shown, at least."""


def measured(tally: DetectionTally) -> dict[str, float]:
    """The lowest threshold, in hundredths, that keeps the precision; what it reaches: precision, recall, boxes.

    Raises UserError where no threshold does.
    """
    scores, right = tally.hits()
    truth = sum(int((~r.crowd & (r.labels < len(tally.classes))).sum()) for r in tally.records)
    for threshold in (hundredth / 100 for hundredth in range(1, 100)):
        shown = right[scores >= threshold]
        if len(shown) and shown.mean() >= PRECISION:
            return {
                "threshold": threshold,
                "precision": round(float(shown.mean()), 3),
                "recall": round(float(shown.sum()) / truth, 3),
                "boxes_an_image": round(len(shown) / len(tally), 2),
            }
    raise UserError(f"at no threshold are {PRECISION:.0%} of the boxes right: train on, or keep the usual threshold")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate boxes, measure, write the checkpoint anew; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="checkpoint, which is written anew")
    parser.add_argument("--data_root", required=True, metavar="FOLDER", help="where a held-out set of boxes lies")
    args = parser.parse_args(argv)
    device = pick_device()
    model = load_model(args.weights, device)
    task_set = load_set(args.data_root, "det", None, model.classes["det"])
    tally = Evaluator({"det": task_set}, model.input_size).run(model, device).per_image["det"]
    assert isinstance(tally, DetectionTally)
    found = measured(tally)
    save(args.weights, {**load_stored(args.weights), "threshold": found["threshold"]})
    print(json.dumps({"weights": str(args.weights), "images": len(tally), **found}))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
