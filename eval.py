"""Score a model on the three sets: `python eval.py --weights your_model.pt --data_root data --tasks all`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from data.catalog import load_set, summary
from data.errors import DataError, SetNotFound
from data.types import Task, TaskSet
from engine.evaluation.evaluate import Evaluator, Model
from engine.evaluation.leakage import trained_on
from engine.evaluation.metrics import SCORE_NAMES, ClassificationTally, SegmentationTally, Tally
from engine.predict import load_model
from engine.speed.onnx_model import is_onnx
from engine.storage.checkpoint import load, provenance
from engine.storage.device import cpu_name, pick_device
from engine.storage.errors import UserError, noted, positive, run_cli
from engine.storage.files import own_json

NAMES: dict[Task, str] = {"det": "detection", "seg": "segmentation", "cls": "classification"}
COUNTS = ("boxes", "images")
EXAMPLE = """example:
  python eval.py --weights weights/onehead.pt --data_root data --tasks all
  python eval.py --weights runs/demo/cls.pt --tasks det,seg --split val --json scores.json

The last line of stdout is one JSON object with the scores as fractions of 1; null stands for a score that
could not be computed, and "seen_in_training" is the number of images among them that the model was trained on,
null if its file has no list of them. Exit code 2 if a set is broken, a task asked for by name has none, or all have
none."""

Results = dict[Task, tuple[TaskSet, Tally]]
Leaked = dict[Task, int | None]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command line."""
    parser = argparse.ArgumentParser(
        description="Score a model: mAP, mIoU and Top-1.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "(default: %(default)s)"
    add = parser.add_argument_group("what to score").add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of the model, or its .onnx export (required)")
    add(
        "--data_root",
        default="data",
        metavar="FOLDER",
        help=f"where the sets are, in any usual layout {default}",
    )
    choice = "all, or any of det, seg, cls (default: all)"
    add("--tasks", nargs="+", default=["all"], metavar="TASK", help=choice)
    splits = ("test", "val", "train")
    add("--split", choices=splits, help="one split only (default: test, else val, else all images)")
    add = parser.add_argument_group("how").add_argument
    devices = ("auto", "cpu", "cuda")
    add("--device", choices=devices, default="auto", help=f"auto: CUDA if there is one {default}")
    add("--batch_size", type=positive, default=8, metavar="N", help=f"images per forward pass {default}")
    add = parser.add_argument_group("output").add_argument
    add("--json", metavar="FILE", help="also write scores, tables and sets here (default: no)")
    add("--confusion", action="store_true", help="print confusion matrices of seg and cls")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for; returns the exit code."""
    args = build_parser().parse_args(argv)
    tasks, required = parse_tasks(args.tasks)
    if not Path(args.data_root).is_dir():
        raise UserError(f"--data_root {args.data_root}: no such folder; run `python -m data.download --root data`")
    if args.json is not None and not own_json(Path(args.json), "per_class"):
        raise UserError(f"--json {args.json}: a file is there that is no earlier result; name another")
    exported, device = is_onnx(args.weights), _device(args.device)
    if exported:
        device = torch.device("cpu")
    model = load_model(args.weights, device)
    content = {} if exported else load(args.weights)
    results: Results = {}
    leaked: Leaked = {}
    for task in tasks:
        if not model.classes[task]:
            complain(task, "the model has learnt no classes of it", task in required)
            continue
        try:
            task_set = load_set(args.data_root, task, args.split, model.classes[task])
            tally = score(model, task_set, args.batch_size, device)
            leaked[task] = count_leaked(task_set, content)
            results[task] = task_set, tally
        except DataError as error:
            if not isinstance(error, SetNotFound):
                required.add(task)  # a set that is there but broken must not be passed over
            complain(task, str(error), task in required)
    if not results and not required:
        print("error: no task was evaluated", file=sys.stderr)
    for task_set, tally in results.values():
        print_classes(task_set, tally, args.confusion)
    flat = flat_scores(tasks, results)
    print_scores(flat)
    print(json.dumps({**flat, "seen_in_training": total(leaked.values())}, allow_nan=False))
    if args.json is not None:
        about = {"weights": args.weights, "device": str(device)}
        with noted("the file names no processor and no versions"):
            about |= {"processor": cpu_name(), **provenance()}
        write_json(Path(args.json), flat, results, leaked, about)
    return 0 if results and required <= results.keys() else 2


def complain(task: Task, reason: str, is_error: bool) -> None:
    """Say that a task is not evaluated, and why: an error where that changes the exit code."""
    print(f"{'error' if is_error else 'note'}: {NAMES[task]} is not evaluated: {reason}", file=sys.stderr)


def parse_tasks(words: Sequence[str]) -> tuple[list[Task], set[Task]]:
    """Return the tasks to score, in the order of the report, and those asked for by name.

    Raises UserError for a word that is neither `all` nor a task.
    """
    given = [word for part in words for word in part.lower().replace(",", " ").split()]
    known: dict[str, Task] = {word: task for task, name in NAMES.items() for word in (task, name)}
    wrong = [word for word in given if word != "all" and word not in known]
    if wrong or not given:
        raise UserError(f"--tasks {' '.join(wrong or words)!r}: choose all, or any of {', '.join(known)}")
    named = {known[word] for word in given if word != "all"}
    return [task for task in NAMES if "all" in given or task in named], named


def score(model: Model, task_set: TaskSet, batch_size: int, device: torch.device) -> Tally:
    """Print what the set holds and run the model over it."""
    print(summary(task_set), end="\n\n", flush=True)
    evaluator = Evaluator({task_set.task: task_set}, model.input_size, batch_size)
    return evaluator.run(model, device).per_image[task_set.task]


def count_leaked(task_set: TaskSet, content: dict[str, Any]) -> int | None:
    """How many images of a set the model was trained on, with a warning if any; None if its file has no list."""
    leaked = trained_on((record.image for record in task_set.records), content)
    if leaked:
        print(
            f"warning: {len(leaked)} of {len(task_set.records)} {NAMES[task_set.task]} images are training images of "
            f"this model, first {leaked[0]}: its scores say nothing about new images",
            file=sys.stderr,
        )
    return None if leaked is None else len(leaked)


def total(counts: Iterable[int | None]) -> int | None:
    """Sum of counts that are there, None if none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def flat_scores(tasks: Sequence[Task], results: Results) -> dict[str, float | None]:
    """Return all metrics of `tasks` in one dictionary; None for what could not be computed."""
    scores = {name: value for _, tally in results.values() for name, value in tally.scores().items()}
    return {name: _plain(scores.get(name)) for task in tasks for name in SCORE_NAMES[task]}


def print_scores(flat: dict[str, float | None]) -> None:
    """Print the table metric | value, fractions of 1."""
    rows = [[name, "-" if value is None else f"{value:.4f}"] for name, value in flat.items()]
    print(table(["metric", "value"], rows), end="\n\n")


def print_classes(task_set: TaskSet, tally: Tally, confusion: bool) -> None:
    """Print the metrics of every class, what the model does not know, and a confusion matrix if asked."""
    classes = tally.per_class()
    columns = list(next(iter(classes.values())))
    rows = [[name, *(_cell(column, values[column]) for column in columns)] for name, values in classes.items()]
    print(table([NAMES[task_set.task], *columns], rows), end="\n\n")
    if task_set.unknown:
        print(f"unknown to the model, counted as missed: {', '.join(task_set.unknown)}\n")
    if confusion and isinstance(tally, (SegmentationTally, ClassificationTally)):
        print(confusion_table(list(classes), tally.confusion()), end="\n\n")


def confusion_table(names: Sequence[str], matrix: NDArray[Any]) -> str:
    """Lay out a confusion matrix in percent of each row; rows truth, columns prediction in the same order."""
    rows = []
    for k, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        total = sum(counts)
        rows.append([f"{k} {name}", *(f"{100 * n / total:.0f}" if total and n else "." for n in counts)])
    return table(["truth / predicted, %", *map(str, range(len(names)))], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out text in aligned columns, the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    aligned = ([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])] for first, *rest in lines)
    return "\n".join(map("  ".join, aligned))


def write_json(
    path: Path, flat: dict[str, float | None], results: Results, leaked: Leaked, about: dict[str, str]
) -> None:
    """Write scores, tables of the classes, what the sets were and what scored them. Raises UserError if that fails."""
    per_class: dict[str, Any] = {}
    sets: dict[str, Any] = {}
    for task, (found, tally) in results.items():
        per_class[task] = {
            name: {key: _plain(value) for key, value in row.items()} for name, row in tally.per_class().items()
        }
        sets[task] = {"split": found.split, "images": len(found.records), "layout": found.layout}
        sets[task] |= {"unknown": found.unknown, "notes": found.notes, "seen_in_training": leaked[task]}
    text = json.dumps({**flat, "per_class": per_class, "sets": sets, "about": about}, indent=2, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}; name a file in a folder that can be written") from error


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if column in COUNTS else f"{value:.4f}"


def _plain(value: float | None) -> float | None:
    """The number as JSON can hold it: no NaN, and no digits that are mere rounding."""
    return None if value is None or math.isnan(value) else round(value, 6)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; use --device auto or cpu")
    return pick_device(name)


if __name__ == "__main__":
    sys.exit(run_cli(main, memory="--batch_size"))
