"""The three sets that a run trains and is evaluated on."""

from __future__ import annotations

from dataclasses import replace

from data.catalog import load_set
from data.errors import SetNotFound
from data.types import TASKS, Task, TaskSet
from engine.settings.config import Config
from engine.storage.errors import UserError


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
        except SetNotFound:
            if task in config.order:
                raise
            continue
        train[task], held[task] = learnt, scored
    return train, held


def first(task_set: TaskSet, count: int) -> TaskSet:
    """The first images by name, for the overfit test."""
    return replace(task_set, split=f"first {count} of {task_set.split}", records=task_set.records[:count])
