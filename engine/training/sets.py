"""The three sets that a run trains and is evaluated on."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace

from data.catalog import load_set
from data.errors import DataError, SetNotFound
from data.types import TASKS, Task, TaskSet
from engine.evaluation.leakage import digest
from engine.settings.config import Config, DataConfig
from engine.storage.errors import UserError

HOLD_BACK = "`--data.holdout true` trains on five sixths of the training images and scores on the others"


def read_sets(config: Config, overfit: int = 0) -> tuple[dict[Task, TaskSet], dict[Task, TaskSet]]:
    """Training and evaluation sets of all three tasks; the same few images for both in the overfit test.

    A task that is in no stage may have no set. Raises DataError for any other set that is missing or broken, UserError
    for settings that contradict each other.
    """
    root, holdout, fold = config.data.root, config.data.holdout, config.data.fold
    if holdout and config.data.eval_root:
        raise UserError("data.holdout evaluates on images of data.root, data.eval_root on others: set one of the two")
    train: dict[Task, TaskSet] = {}
    held: dict[Task, TaskSet] = {}
    for task in TASKS:
        try:
            learnt = load_set(root, task, "train", part="fit" if holdout else "all", fold=fold)
            if overfit:
                learnt = scored = first(learnt, overfit)
            elif holdout:
                scored = load_set(root, task, "train", learnt.classes, part="choose", fold=fold)
            else:
                scored = load_set(config.data.eval_root or root, task, "val", learnt.classes)
        except SetNotFound as error:
            if task not in config.order:
                continue
            raise SetNotFound(f"{error}; {HOLD_BACK}" if _only_to_train(root, task) else str(error)) from None
        if not learnt.records or not scored.records:
            raise DataError(
                f"{root}: {len(learnt.records)} images of {task} to train on and {len(scored.records)} to score on: "
                "bring two or more, or leave out --data.holdout"
            )
        train[task], held[task] = learnt, scored
    return train, held


def _only_to_train(root: str, task: Task) -> bool:
    """Whether there is a training set, so that only images to score on are missing."""
    try:
        return bool(load_set(root, task, "train").records)
    except DataError:
        return False


def warn_of_seen(train: Mapping[Task, Collection[str]], held: Mapping[Task, TaskSet], config: DataConfig) -> None:
    """Say which images are scored and trained on; `train` has the digests of each task's training images."""
    counts = {task: sum(digest(r.image) in learnt for r in held[task].records) for task, learnt in train.items()}
    seen = [f"{count} of the {len(held[task].records)} images of {task}" for task, count in counts.items() if count]
    if seen:
        remedy = "remove the copies" if config.holdout or config.eval_root else HOLD_BACK
        print(
            f"warning: {', '.join(seen)} that are scored are also trained on: the scores say nothing about new images; "
            f"{remedy}",
            file=sys.stderr,
        )


def first(task_set: TaskSet, count: int) -> TaskSet:
    """The first images by name, for the overfit test."""
    return replace(task_set, split=f"first {count} of {task_set.split}", records=task_set.records[:count])
