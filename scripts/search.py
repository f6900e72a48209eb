"""Ablations: train every variant of a grid for every seed, then print one table a stage.

python -m scripts.search configs/search/det.yaml --data.root data

Results land in results/<grid's name>/, one file a cell; cells that are there already are not trained again. Options
that this script does not know are handed on to every training. On a CPU two cells at once, a core each, take less time
than one after the other on both: give two terminals, both with OMP_NUM_THREADS=1, different --seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.experiments.cells import given_settings, read_grid, run_cell
from engine.storage.errors import UserError, run_cli
from engine.training.summary import JOINT

EVERY = ("mIoU", "AP50", "mAP", "Top-1")
METRICS = {"seg": ("mIoU",), "det": ("AP50", "mAP"), "cls": ("Top-1",), "all": EVERY, JOINT: EVERY}
"""What is shown of a stage."""


def table(stage: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """One line a variant: mean and range over seeds of each metric at the end, minutes."""
    metrics, width = METRICS[stage], max(map(len, results))
    lines = [f"\n{stage:<{width}}  seeds" + "".join(f"{m:>22}" for m in metrics) + f"{'minutes':>10}"]
    for variant, cells in results.items():
        line = f"{variant:<{width}}  {len(cells):>5}"
        for metric in metrics:
            values = [c["rows"][-1][metric] or 0.0 for c in cells]
            line += f"{statistics.mean(values):>8.4f} {f'({min(values):.3f}-{max(values):.3f})':>13}"
        lines.append(line + f"{statistics.mean(c['minutes'] for c in cells):>10.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then print the table."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape, allow_abbrev=False)
    parser.add_argument("grid", type=Path, help="YAML file of the grid")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders lie")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these seeds of the grid")
    args, options = parser.parse_known_args(argv)
    grid = read_grid(args.grid).only(args.seeds)
    for stage in set(grid.stages) - METRICS.keys():
        raise UserError(f"{args.grid}: stages has {stage!r}; choose among {', '.join(METRICS)}")
    grid = replace(grid, settings={**grid.settings, **given_settings(options)})
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in grid.cells():
        result = run_cell(grid, cell, args.results, args.runs)
        results.setdefault(cell.stage, {}).setdefault(cell.variant, []).append(result)
    for stage, rows in results.items():
        print(table(stage, rows))
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
