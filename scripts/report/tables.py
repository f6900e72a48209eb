"""One function a kind of table: records in results/ -> Markdown.

fill_tables.py knows which table a page shows and calls these; engine/experiments/tables.py has the lines
that comparisons print too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.evaluation.metrics import HEADLINE
from engine.experiments.tables import chains_and_singles, final_lines, markdown, matrix_lines, memory, number, transfer
from engine.storage.errors import UserError

METRICS = {"seg": ("mIoU",), "det": ("AP50", "mAP"), "cls": ("Top-1",)}

PARTS = ("backbone", "neck", "head")
SHOWN = ("mIoU", "mAP", "AP50", "Top-1")
OWN = {metric: stage for stage, metrics in METRICS.items() for metric in metrics}
"""Stage that teaches each metric."""
RUNS = {
    "quickstart.json": "synthetic sets, `make quickstart` in float32",
    "real_from_random_weights.json": "real sets from random weights, `configs/real.yaml`",
    "final/onehead-all-s0.json": "real sets, `configs/default.yaml`",
    "final/strict-all-s0.json": "real sets, `configs/strict.yaml`",
    "overfit_8.json": "self-test, `--overfit 8`, scored on the 24 images it learnt, on purpose",
}
"""What the README names of single runs."""

RECIPE = "onehead"
"""The variant of configs/final.yaml that weights/onehead.pt was trained by."""

CHAINS = {
    "fast_scnn": ("stage 0, 9 M views, pseudo-boxes", "final/onehead-all-s*.json"),
    "efficientnet_lite0": ("ImageNet", "final-lite0/onehead-all-s*.json"),
    "efficientnet_b0": ("Lite0's weights, then stage 0, 0.04 M", "final-backbones/efficientnet_b0-all-s*.json"),
    "mobilenetv3_small": ("stage 0, 0.045 M", "final-backbones/mobilenetv3_small-all-s*.json"),
    "yolov8n": ("stage 0, 0.1 M", "final-backbones/yolov8n-all-s*.json"),
}
"""Backbones whose chains were run on the real sets: what they started from, and their results."""

ALONE = {
    "final/single-task": "Fast-SCNN from stage 0, `configs/default.yaml`",
    "final-9030k/single-task": "the same, neck and head from random weights",
    "final-mosaics/single-task": "the same from the stage 0 before the teacher, as in the next five rows",
    "longer/longer": "102 epochs each, as many as the whole chain, `configs/longer.yaml`",
    "final-24/single-task": "boxes in 24 epochs instead of 48",
    "conventional/conventional": "the same backbone and neck, a conventional head each",
    "final-exclusive/single-task": "Fast-SCNN, one objectness and a softmax over classes",
    "longer-78/longer": "the same, 78 epochs each",
    "final-lite0-256/single-task": "EfficientNet-Lite0 from ImageNet, 256 px",
    "final-lite0-320/single-task": "the same, 320 px",
}
"""Recipes by which each task was trained alone, by folder of results and variant."""

HELD = ("drift", "agree", "seg_ce", "seg_dice", "det_class", "conf", "l1", "giou", "mIoU", "mAP", "AP50")
"""Columns of held-back losses, those that a record has."""

FOLDS = {
    "exclusive": "boxes alone, one objectness and a softmax over classes",
    "each": "boxes alone, per-class sigmoids",
    "chain": "the same after stage 1, with the remedies",
    "chain-48": "the same in 48 epochs instead of 24",
}
FOLDED = {"AP50": "AP50", "mAP": "mAP", "pooled over classes": "pooled", "class-agnostic": "nameless"}
"""Rows and columns of the table of folds."""

ABLATION = {
    "finetune": "none: plain fine-tuning",
    "statistics-kept": "frozen batch-norm statistics (stage 1's)",
    "lower-rate": "half rate for shared weights",
    "freeze": "frozen shared weights (reference)",
    "l2sp": "L2-SP",
    "ewc": "EWC",
    "average": "weight averaging of stages (scored before the last one was averaged)",
    "replay": "replay, 10 images a task",
    "recall": "`recall`: LwF of stage 0's classes",
    "hold": "`hold`: feature distillation from stage 0",
    "features": "feature distillation",
    "lwf": "LwF: final outputs",
    "distill": "distillation of all outputs, dense and per layer",
    "sum": "all remedies of the strict recipe",
    "joint": "joint training (reference)",
}
"""What each variant of configs/compare.yaml adds to plain fine-tuning, in the order of the table."""

COLUMNS = {"det": ("boxes", "AP", "AP50"), "seg": ("pixels", "IoU", "accuracy"), "cls": ("images", "accuracy")}
"""Of the tables of classes: how many there are of each, then its scores."""
NAMES = {"det": "detection", "seg": "segmentation", "cls": "classification"}

Result = dict[str, Any]


def grid(folder: Path) -> list[Result]:
    """The results of one search. Raises UserError when there are none."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder} holds no results: run the search that makes them, or remove its table")
    return [json.loads(path.read_text()) for path in files]


def starts(folder: Path) -> str:
    """One row a variant: the metrics of all tasks trained alone, mean and range over seeds, and minutes."""
    rows = [["start", "seeds", *(m for metrics in METRICS.values() for m in metrics), "minutes: seg, det, cls"]]
    results = grid(folder)
    for variant in dict.fromkeys(r["variant"] for r in results):
        row, minutes = [variant], []
        cells = {stage: [r for r in results if (r["variant"], r["stage"]) == (variant, stage)] for stage in METRICS}
        row.append(str(len({r["seed"] for r in results if r["variant"] == variant})))
        for stage, metrics in METRICS.items():
            row += [spread(cells[stage], metric) for metric in metrics]
            minutes.append(f"{statistics.mean(c['minutes'] for c in cells[stage]):.1f}" if cells[stage] else "-")
        rows.append([*row, ", ".join(minutes)])
    return "\n".join(markdown(rows))


def alone(results: Path) -> str:
    """One row a recipe: what networks reach that learn one task each, mean and range over seeds, and what it took."""
    metrics = [m for shown in METRICS.values() for m in shown]
    rows = [["each task alone", "seeds", *metrics, "minutes: seg, det, cls", "MiB", "machine"]]
    for name, title in ALONE.items():
        folder, variant = name.split("/")
        singles = [r for r in grid(results / folder) if r["variant"] == variant]
        cells = {stage: [r for r in singles if r["stage"] == stage] for stage in METRICS}
        minutes = ", ".join(f"{statistics.mean(c['minutes'] for c in cells[stage]):.1f}" for stage in METRICS)
        values = [spread(cells[OWN[m]], m) for m in metrics]
        counts = [str(len(cells[stage])) for stage in METRICS]
        seeds = counts[0] if len(set(counts)) == 1 else ", ".join(counts)
        rows.append([title, seeds, *values, minutes, memory(singles), singles[0]["machine"]])
    return "\n".join(markdown(rows))


def search(folder: Path) -> str:
    """One row a variant and stage: what was changed, metrics, minutes, memory."""
    results = grid(folder)
    stages = [stage for stage in METRICS if any(r["stage"] == stage for r in results)]
    tables = []
    for stage in stages:
        rows = [["variant", "settings", "seeds", *METRICS[stage], "minutes", "MiB"]]
        cells = [r for r in results if r["stage"] == stage]
        for variant in dict.fromkeys(r["variant"] for r in cells):
            mine = [r for r in cells if r["variant"] == variant]
            rows.append([variant, settings(mine[0]), str(len(mine)), *(spread(mine, m) for m in METRICS[stage])])
            rows[-1] += [f"{statistics.mean(c['minutes'] for c in mine):.1f}"]
            rows[-1] += [f"{max(c['peak_memory_mib'] for c in mine):.0f}"]
        tables.append("\n".join(markdown(rows)))
    return "\n\n".join(tables)


def chains(folder: Path) -> str:
    """One row a chain of stages, all or the first of them: metrics after their own and the last one, minutes."""
    rows = [["chain", *(f"{metric}: own stage, end" for metric in OWN), "minutes", "commit"]]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        after = {row["stage"]: row for row in result["rows"]}
        end = result["rows"][-1]
        values = [f"{after[s][m]:.3f}, {end[m]:.3f}" if s in after else "-" for m, s in OWN.items()]
        rows.append([path.stem, *values, f"{result['minutes']:.1f}", result["commit"]])
    return "\n".join(markdown(rows))


def comparison(folder: Path) -> str:
    """Final values and drops of a comparison's variants, then every metric after every stage."""
    chains, singles = chains_and_singles(grid(folder))
    return "\n".join([*final_lines(chains, singles), "", *matrix_lines(chains)])


def ablation(folder: Path) -> str:
    """One row a remedy: metrics at the end of the chain, their mean relative changes against single-task networks."""
    chains, singles = chains_and_singles(grid(folder))
    own = {m: number([r["rows"][-1][m] for r in singles if r["stage"] == OWN[m]]) for m in HEADLINE.values()}
    rows = [["remedy", *(name for m in own for name in (m, "change")), "backward transfer"]]
    rows.append(["single-task networks", *(text for value in own.values() for text in (value, "")), ""])
    for variant, title in ABLATION.items():
        cells = chains[variant]
        row = [title]
        for metric in own:
            drops = [c["drops"][metric] for c in cells]
            change = -round(100 * statistics.mean(d["relative"] for d in drops))
            row += [number([d["after"] for d in drops]), f"{change:+d} %"]
        rows.append([*row, transfer(cells)])
    return "\n".join(markdown(rows))


def held(record: Path) -> str:
    """One row a checkpoint: what its stage did, drift of masks, losses and metrics on held-back images."""
    found = json.loads(record.with_suffix(".json").read_text())["rows"]
    shown = [name for name in HELD if name in found[0]]
    rows = [["checkpoint", "teacher", "rate", "probe", "replayed", *(name.replace("_", " ") for name in shown)]]
    for row in found:
        s = row["settings"]
        replayed = f"{s['replay_step']}{' varied' if s.get('replay_vary') else ''}"
        rows.append([row["checkpoint"], *(f"{s[k]:g}" for k in ("distill", "shared_lr", "probe")), replayed])
        rows[-1] += [f"{row[name]:.3f}" for name in shown]
    return "\n".join(markdown(rows))


def classes(record: Path) -> str:
    """What one model makes of every class of the three sets, as `eval.py --json` wrote it down."""
    tables = []
    for task, per_class in json.loads(record.with_suffix(".json").read_text())["per_class"].items():
        count, *shown = COLUMNS[task]
        rows = [[NAMES[task], count, *shown]]
        for name, row in per_class.items():
            amount = f"{100 * row[count]:.1f} %" if count == "pixels" else f"{row[count]:.0f}"
            rows.append([name, amount, *("-" if row[c] is None else f"{row[c]:.3f}" for c in shown)])
        tables.append("\n".join(markdown(rows)))
    return "\n\n".join(tables)


def folds(folder: Path) -> str:
    """One row a way to learn boxes: those of three networks, each on what it held back, as one set of images."""
    rows = [["three networks", *FOLDED]]
    for name, title in FOLDS.items():
        readings = json.loads((folder / f"folds-{name}.json").read_text())["readings"]
        rows.append([title, *(f"{list(readings.values())[-1][score]:.3f}" for score in FOLDED.values())])
    return "\n".join(markdown(rows))


def backbones(folder: Path) -> str:
    """One row a backbone: size and speed, and where a chain was run on the real sets, what it ends with."""
    rows = [["backbone", "parameters", "GFLOPs", "one image", "start", "seeds", *SHOWN]]
    for r in grid(folder):
        start, pattern = CHAINS.get(r["backbone"], ("-", ""))
        files = folder.parent.glob(pattern) if pattern else []
        ends = [json.loads(path.read_text()) for path in files]
        row = [f"`{r['backbone']}`", millions(r, ""), f"{r['gflops']:.1f}", f"{r['latency_ms_median']:.0f} ms"]
        rows.append([*row, start if ends else "-", str(len(ends) or "-"), *(spread(ends, metric) for metric in SHOWN)])
    return "\n".join(markdown(rows))


def millions(result: Result, part: str) -> str:
    """Parameters of a part, or of all."""
    return f"{result[f'parameters_{part}' if part else 'parameters'] / 1e6:.2f} M"


def runs(results: Path) -> str:
    """Single runs worth naming: all metrics at the end, and right after each task's own stage where they are chains."""
    rows = [["run", "mIoU", "mAP", "AP50", "Top-1", "minutes", "commit"]]
    for file, name in RUNS.items():
        r = json.loads((results / file).read_text())
        ends = r.get("rows") or r.get("evaluations") or [r]
        link = f"[{name}](results/{file})"
        rows.append([link, *(f"{ends[-1][m]:.3f}" for m in SHOWN), f"{r['minutes']:.1f}", r["commit"]])
        if len(ends) > 1:
            own = [[e[m] for e in ends if e["stage"] == OWN[m]][-1] for m in SHOWN]
            rows.append(["- each task right after its own stage", *(f"{v:.3f}" for v in own), "", ""])
    return "\n".join(markdown(rows))


def settings(result: Result) -> str:
    """What a cell changes, in short; that it was scored on held-back training images is stated above the table."""
    own = {k: v for k, v in result["settings"].items() if k != "data.holdout"}
    return ", ".join(f"`{k} {v if isinstance(v, str) else json.dumps(v)}`" for k, v in own.items())


def spread(cells: Sequence[Result], metric: str) -> str:
    """Mean over seeds and range of a metric at the end."""
    return number([c["rows"][-1][metric] or 0.0 for c in cells]) or "-"
