"""Command line of training: one stage, or all in order.

    python -m engine.train --stage all --data.root data
    python -m engine.train --stage all --data.root data --name mine --resume      # go on where a killed run stopped
    python -m engine.train --stage all --data.root data --config configs/lite0.yaml --optim.lr 5e-4

A stage starts from the first of these that there is:

1. last.pt of this run, if it was interrupted (with --resume)
2. the previous stage's checkpoint of this run
3. for the run's first stage, what --init says: unasked, the weights of stage 0, weights/<backbone>_stage0.pt
4. random weights, and it says so
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed

from engine.evaluation.metrics import HEADLINE
from engine.pretrain import pretrain
from engine.report.chain import write_report
from engine.report.curves import plot_panels
from engine.settings.config import BACKBONE_OF, IMAGENET, STAGE0, Config, to_dict
from engine.settings.options import build_parser, to_config
from engine.storage.checkpoint import build_model, load
from engine.storage.device import keep_freed_memory
from engine.storage.errors import UserError, noted, run_cli
from engine.storage.files import first_process, run_lock, write_text
from engine.training.changed_data import check_data
from engine.training.run import SUMMARY, Run
from engine.training.stage import StageLoop
from engine.training.start import first_weights
from engine.training.summary import JOINT, headline
from models.onehead import OneHead, count_parameters


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = build_parser("python -m engine.train", "Train OneHead: segmentation, detection, classification in turn.")
    stages = ["all", "pretrain", "seg", "det", "cls", JOINT]
    parser.add_argument("--stage", choices=stages, default="all", help="what to train")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_argument(
        "--overfit",
        type=int,
        default=0,
        metavar="N",
        help="self-test: overfit the first N images of each set, all tasks at once",
    )
    parsed = parser.parse_args(argv)
    keep_freed_memory()
    if parsed.stage == "pretrain":
        pretrain(to_config(parser, parsed), parsed.resume)
        return 0
    train(to_config(parser, parsed), JOINT if parsed.overfit else parsed.stage, parsed.resume, parsed.overfit)
    return 0


def train(config: Config, stage: str = "all", resume: bool = False, overfit: int = 0) -> dict[str, Any]:
    """Train the stages asked for and return the run's summary. Raises UserError and DataError."""
    folder = Path(config.runs) / config.name
    with run_lock(folder):
        return train_in(folder, config, stage, resume, overfit)


def train_in(folder: Path, config: Config, stage: str, resume: bool, overfit: int) -> dict[str, Any]:
    """Train the stages asked for in a folder that no other run works in."""
    stages = list(config.order) if stage == "all" else [stage]
    done = [s for s in stages if (folder / f"{s}.pt").is_file()]
    unfinished = load(folder / "last.pt") if (folder / "last.pt").is_file() else None
    if unfinished and (folder / f"{unfinished['stage']}.pt").is_file():
        unfinished = None  # killed between writing the stage's checkpoint and removing last.pt
    check_start(config, folder, stages, done, unfinished, resume)
    if done == stages and (folder / SUMMARY).is_file():
        return finished_before(folder, config, stages)
    check_model(config)
    run = Run(config, overfit)
    if unfinished:
        for change in changes(unfinished["config"], to_dict(config)):
            run.print(f"note: {change} since the run was interrupted")
    rows = latest_rows(config, folder, unfinished)
    run.track(rows, to_dict(config))
    if run.is_main and done != stages:
        write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    for name in stages:
        if name in done:
            run.print(f"stage {name}: done before, {folder / name}.pt")
            continue
        train_stage(run, name, unfinished if unfinished and unfinished["stage"] == name else None)
    if not run.is_main:
        return {}
    summary = run.write_summary()
    with noted("no plot is drawn"):
        plot_panels(run.tracker.rows, {}, folder / "forgetting.png")
    with noted("no report is written"):
        write_report(folder)
    run.tracker.close(summary["tasks"])
    print_table(summary, run.tracker.rows, folder)
    return summary


def finished_before(folder: Path, config: Config, stages: Sequence[str]) -> dict[str, Any]:
    """Print and return what a finished run came to; its folder stays as it is, whatever the settings are now."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    if first_process():
        for name in stages:
            print(f"stage {name}: done before, {folder / name}.pt")
        changed = changes(load(folder / f"{stages[-1]}.pt")["config"], to_dict(config))
        if changed:
            print(f"note: nothing is left to train, give another --name to train with {', '.join(changed)}")
        print_table(summary, latest_rows(config, folder, None), folder)
    return summary


def check_start(
    config: Config,
    folder: Path,
    stages: Sequence[str],
    done: Sequence[str],
    unfinished: dict[str, Any] | None,
    resume: bool,
) -> None:
    """Refuse to overwrite a run, and to start a stage whose predecessor is missing or whose successor is there."""
    first, order = next((s for s in stages if s not in done), None), list(config.order)
    later = [s for s in order[order.index(first) + 1 :] if (folder / f"{s}.pt").is_file()] if first in order else []
    if later:
        raise UserError(
            f"stage {first} comes before {later[0]} in order {order}, but {folder} holds {later[0]}.pt alone: give the "
            f"order it was trained in, put {first}.pt back, or give another --name"
        )
    if not resume and (done or unfinished):
        what = "an interrupted stage" if unfinished else f"finished stages ({', '.join(done)})"
        raise UserError(f"{folder} already holds {what}: add --resume to go on, or give another --name")
    outside = [s for s in stages if s not in (*order, JOINT)]
    if outside:
        raise UserError(f"stage {outside[0]} is not in order {order}: add it to --order, or choose another --stage")
    if first in order and order.index(first) > 0:  # type: ignore[arg-type]
        before = order[order.index(first) - 1]  # type: ignore[arg-type]
        if before not in stages and not (folder / f"{before}.pt").is_file():
            raise UserError(
                f"stage {first} starts from {folder / before}.pt, which is missing: run "
                f"`python -m engine.train --stage {before} --name {config.name}` first"
            )
    if unfinished and unfinished["stage"] not in stages:
        raise UserError(
            f"{folder}/last.pt is of stage {unfinished['stage']}: finish that one with "
            f"`--stage {unfinished['stage']} --resume`, or delete the file"
        )


def check_model(config: Config) -> None:
    """Refuse a network that cannot be built, or an --init that is none, before any data is read."""
    try:
        OneHead(config.model, {"seg": ("one",), "det": ("one",), "cls": ("one",)}, config.data.size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.init and config.init != STAGE0 and config.init.split(":")[0] != IMAGENET:
        load(config.init.removeprefix(BACKBONE_OF))


def changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between two runs, as "key: old -> new"; where a run lies does not count."""
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new and prefix + key not in ("name", "runs"):
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def latest_rows(config: Config, folder: Path, unfinished: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Figures of the epochs already done: of the newest checkpoint, which holds the most."""
    if unfinished:
        return list(unfinished["rows"])
    files = [folder / f"{stage}.pt" for stage in (*config.order, JOINT)]
    return max((list(load(file)["rows"]) for file in files if file.is_file()), key=len, default=[])


def start_model(run: Run, name: str, unfinished: dict[str, Any] | None) -> tuple[OneHead, dict[str, Any]]:
    """The model that a stage starts from and the remedies' state, by the order at the top of this file."""
    config, before = run.config, run.previous(name)
    path = run.folder / ("last.pt" if unfinished else f"{before}.pt")
    content = unfinished or (load(path) if before else None)
    check_data(run, name, content, path)
    if content:
        start = f"resumed after epoch {content['epoch']}" if unfinished else f"starts from {path}"
        run.print(f"stage {name}: {start}")
        return build_model(content, str(path)), content["remedies"]
    set_seed(config.seed)
    model = OneHead(config.model, run.classes, config.data.size)
    run.print(f"stage {name}: starts from {first_weights(model, config)}")
    return model, {}


def train_stage(run: Run, name: str, unfinished: dict[str, Any] | None) -> None:
    """Find the stage's start, restore remedies, train."""
    model, state = start_model(run, name, unfinished)
    run.restore_remedies(state, name)
    run.print(f"stage {name}: {count_parameters(model) / 1e6:.2f} M parameters, {run.device}, {run.dtype or 'float32'}")
    StageLoop(run, name, model, unfinished).train()
    if not run.is_main:
        return  # the main process keeps the figures
    last = run.tracker.rows[-1]
    run.print(f"stage {name}: {last['seconds'] / 60:.1f} min, {headline(last)}")


def print_table(summary: dict[str, Any], rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """One line a task: value after its own stage, at the end, change, verdict."""
    print(f"\n{'task':<6}{'metric':<8}{'own stage':>10}{'end':>9}{'points':>8}{'relative':>10}  lost at most 5 %")
    for task in HEADLINE:
        if task in summary["tasks"]:
            t = summary["tasks"][task]
            print(
                f"{task:<6}{t['metric']:<8}{t['after_own_stage']:>10.4f}{t['final']:>9.4f}"
                f"{0 - t['drop_points']:>+8.2f}{0 - 100 * t['drop_relative']:>+9.1f}%  {kept(t)}"
            )
    last = next((r for r in reversed(rows) if "AP50" in r), None)
    if last is not None:
        print(f"AP50 at the end: {last['AP50']:.4f}")
    print(f"{summary['minutes']:.1f} minutes of training; figures and plots in {folder}")


def kept(task: dict[str, Any]) -> str:
    """Whether what a task had after its own stage is kept."""
    if not task["after_own_stage"]:
        return "nothing was learnt"
    return "yes" if task["passed"] else "NO"


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    sys.exit(run_cli(main))
