"""A run: its folder, data, device and remedies, which all stages share."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader

from continual import Examples, Remedy, Stage, remedies
from data.catalog import summary
from data.mask_boxes import box_labels
from data.types import TASKS, Task
from engine.evaluation.evaluate import Evaluation, Evaluator
from engine.evaluation.leakage import digests, listed
from engine.evaluation.metrics import HEADLINE
from engine.settings.config import BACKBONE_OF, IMAGENET, STAGE0, Config
from engine.storage.checkpoint import load, load_model, provenance
from engine.storage.device import DTYPES, cpu_name, peak_memory, pick_device, training_precision
from engine.storage.errors import UserError, noted
from engine.storage.files import write_text
from engine.tracking.tracker import Row, Tracker
from engine.training.batches import Batch, process_share, varied
from engine.training.examples import AugmentedImages, ExampleImages
from engine.training.loaders import stage_loaders
from engine.training.sets import read_sets, warn_of_seen
from engine.training.start import pretrained_backbone
from engine.training.summary import JOINT, drops, last_seconds
from models.absorption import absorb_statistics
from models.criterion import Criterion
from models.onehead import OneHead
from models.pretrained_backbone import PretrainedBackbone
from models.targets import Targets

SUMMARY = "summary.json"


class Run:
    """Everything of a run that outlives a stage.

    Args:
        config: all settings.
        overfit: if not 0, train on the first images of every set, without augmentation, and evaluate on the same.
    """

    def __init__(self, config: Config, overfit: int = 0) -> None:
        self.config = config
        self.folder = Path(config.runs) / config.name
        self.device = pick_device()
        precision = training_precision(config.precision, self.device)
        AcceleratorState._reset_state()  # so that one process, such as a notebook, can hold several runs in turn
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        self.dtype = DTYPES[precision]
        self.is_main = self.accelerator.is_main_process
        self.overfit = overfit
        self.train_sets, eval_sets = read_sets(config, overfit)
        for task in self.train_sets:
            self.print(summary(self.train_sets[task]))
            self.print(f"evaluated on: {eval_sets[task].split}, {len(eval_sets[task].records)} images\n")
        self.digests: dict[str, list[str]] = {
            task: digests(r.image for r in task_set.records) for task, task_set in self.train_sets.items()
        }
        self.classes: dict[str, tuple[str, ...]] = {
            task: self.train_sets[task].classes if task in self.train_sets else () for task in TASKS
        }
        self.box_labels = box_labels(self.classes["seg"], self.classes["det"])
        class_of = {label: value for value, label in self.box_labels.items()}
        none = len(self.classes["seg"])
        self.mask_class = torch.tensor([class_of.get(i, none) for i in range(len(self.classes["det"]))]).long()
        if self.is_main and not overfit:
            warn_of_seen(self.learnt_from(), eval_sets, config.data)
        self.evaluator = Evaluator(eval_sets, config.data.size)
        self.remedies: dict[str, Remedy] = remedies(config.continual)
        self.tracker: Tracker

    def learnt_from(self) -> dict[Task, set[str]]:
        """Digests of the images that each task learns from; boxes and masks of the same names may teach each other."""
        own = {task: set(self.digests[task]) for task in TASKS if task in self.digests and task in self.config.order}
        continual, learnt = self.config.continual, dict(own)
        if self.box_labels and {"seg", "det"} <= own.keys():
            if continual.distill and continual.distill_boxes:
                learnt["seg"] = own["seg"] | own["det"]
            if continual.boxes_from_masks:
                learnt["det"] = own["seg"] | own["det"]
        return learnt

    def print(self, text: str) -> None:
        """Print once, whatever the number of processes."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def track(self, rows: list[Row], config: dict[str, Any]) -> None:
        """Open the run's records; `rows` are those of the epochs already done."""
        self.tracker = Tracker(self.folder, self.config.track, config, rows, self.is_main)

    def mean_count(self, count: Tensor) -> Tensor:
        """Mean over processes of a count that a loss is divided by."""
        if self.accelerator.num_processes == 1:
            return count
        mean: Tensor = self.accelerator.reduce(count, "mean")
        return mean

    def tasks_of(self, stage: str) -> tuple[Task, ...]:
        """Tasks that a stage learns."""
        return tuple(t for t in self.train_sets if stage in (t, JOINT))

    def previous(self, stage: str) -> str | None:
        """The stage before, in this run's order."""
        order = list(self.config.order)
        index = order.index(stage) if stage in order else 0  # type: ignore[arg-type]
        return order[index - 1] if index else None

    def freezes(self, stage: str) -> bool:
        """Whether batch-norm statistics stay as they are in a stage."""
        later = self.previous(stage) is not None
        last = later and stage == self.config.order[-1]
        return {"never": False, "last": last, "later": later, "always": True}[self.config.continual.freeze_statistics]

    def start_file(self, stage: str) -> Path | None:
        """The checkpoint that a stage starts from: the previous stage's, else the one named by `init`, if any."""
        before, init = self.previous(stage), (self.config.init or "").removeprefix(BACKBONE_OF)
        if before:
            return self.folder / f"{before}.pt"
        return Path(init) if init and init != STAGE0 and init.split(":")[0] != IMAGENET else None

    def trained_images(self, stage: str, tasks: Iterable[str]) -> list[str]:
        """Digests of the images of `tasks` and of all that the model a stage starts from has learnt from."""
        start = self.start_file(stage)
        inherited = listed(load(start)) if start else None
        return sorted({*(inherited or ()), *(digest for task in tasks for digest in self.digests[task])})

    def finished_model(self, stage: str) -> OneHead:
        """The network that a stage ended with, its weights as the next stage trains them."""
        model = load_model(self.folder / f"{stage}.pt", self.device)
        self.absorb_before_freezing(stage, model)
        return model

    def absorb_before_freezing(self, stage: str, model: OneHead) -> None:
        """Let the filters of the network that a stage ends with take up the statistics that the next one freezes."""
        order = list(self.config.order)
        following = next((b for a, b in pairwise(order) if a == stage), None)
        if following and self.freezes(following):
            absorb_statistics(model)

    def begin(self, stage: str, model: OneHead | None) -> Stage:
        """What remedies may know about a stage that `model` is trained in."""
        before = self.previous(stage)
        old = tuple(self.config.order[: list(self.config.order).index(before) + 1]) if before else ()  # type: ignore
        start = self.finished_model(before) if before else None
        if start is not None:
            start.requires_grad_(False)
        read = partial(ExampleImages, [self.train_sets[t] for t in self.tasks_of(stage)], self.config.data.size)
        vary = partial(varied, augment=self.config.data.augment)
        pretrained = self.pretrained(stage)
        return Stage(
            tasks=self.tasks_of(stage),
            old=old,
            start=start,
            examples=read,
            model=model,
            loss=self.loss,
            pretrained=pretrained,
            vary=vary,
            old_examples=partial(self.old_examples, boxed=self.masks_give_boxes((*self.tasks_of(stage), *old), old)),
            expert=self.expert,
            share=partial(process_share, rank=self.accelerator.process_index, world=self.accelerator.num_processes),
            mask_class=self.mask_class.to(self.device),
        )

    def expert(self, task: str) -> OneHead | None:
        """The network that the configuration names as expert of a task. Raises UserError for other classes."""
        file: str | None = getattr(self.config.continual, f"expert_{task}")
        if file is None:
            return None
        model = load_model(file, self.device).requires_grad_(False)
        if tuple(model.classes[task]) != tuple(self.classes[task]):
            raise UserError(f"continual.expert_{task}: {file} has learnt other classes than this set has; name another")
        return model

    def masks_give_boxes(self, tasks: Collection[str], old: Collection[str]) -> bool:
        """Whether old masks also give boxes in a stage; `tasks`: those that it learns and the old ones."""
        return self.config.continual.boxes_from_masks and "seg" in old and "det" in tasks

    def mask_named(self, stage: Stage) -> Tensor | None:
        """Which classes of boxes masks give; None in a stage in which they give none."""
        if not self.masks_give_boxes((*stage.tasks, *stage.old), stage.old):
            return None
        return (self.mask_class < len(self.classes["seg"])).to(self.device)

    def old_examples(self, task: str, boxed: bool) -> Examples:
        """The training images of a task, augmented as in its own stage; if `boxed`, masks may give boxes."""
        data = self.config.data
        labels = self.box_labels if boxed and task == "seg" else {}
        return AugmentedImages(self.train_sets[cast(Task, task)], data.size, data.augment, labels)

    def pretrained(self, stage: str) -> PretrainedBackbone | None:
        """The backbone that this run began with, if a remedy asks for it and it was not random."""
        config, weights = self.config, self.config.continual
        if stage == JOINT or not (weights.hold or weights.recall):
            return None
        if not config.optim.backbone_lr:
            self.print(f"stage {stage}: hold and recall do nothing, the backbone stays as it is (optim.backbone_lr 0)")
            return None
        if self.previous(stage):
            config = replace(config, init=load(self.folder / f"{config.order[0]}.pt")["config"]["init"])
        found = pretrained_backbone(config)
        if found is None:
            self.print(f"stage {stage}: hold and recall do nothing, the run began with random weights")
        elif found.readout is None and weights.recall:
            self.print(f"stage {stage}: recall does nothing, what the run began with names no pictures")
        return found.to(self.device).to(memory_format=torch.channels_last) if found else None

    def loss(self, model: OneHead, images: Tensor, targets: Targets) -> Tensor | None:
        """The training loss of a network on some images, None where none of them is annotated."""
        terms = Criterion(self.config.loss)(model(images), targets)
        return torch.stack(list(terms.values())).sum() if terms else None

    def restore_remedies(self, state: dict[str, Any], stage: str) -> None:
        """Give remedies their state before a stage; one without any was off, and collects now what it missed."""
        for name, remedy in self.remedies.items():
            if name in state:
                remedy.load_state_dict(state[name])
        late = [remedy for name, remedy in self.remedies.items() if name not in state]
        order = list(self.config.order)
        for done in order[: order.index(stage)] if late and stage in order else ():  # type: ignore[arg-type]
            finished = self.begin(done, self.finished_model(done))
            for remedy in late:
                remedy.after_stage(finished)

    def loaders(self, stage: str) -> dict[str, DataLoader[Batch]]:
        """Loaders of a stage: "augmented", and "plain" for its end, if it has one."""
        sets = [self.train_sets[task] for task in self.tasks_of(stage)]
        process = self.accelerator.process_index, self.accelerator.num_processes
        return stage_loaders(sets, stage, self.config, bool(self.overfit), self.device, *process)

    def evaluate(self, model: OneHead) -> Evaluation:
        """What the model does on all evaluation sets."""
        return self.evaluator.run(model, self.device, self.dtype)

    def write_summary(self) -> dict[str, Any]:
        """Write summary.json: every task's value right after its own stage, at the end, and the drops."""
        rows = [r for r in self.tracker.rows if set(HEADLINE.values()) & r.keys()]
        peaks = [r.get("peak_memory_mib", 0.0) for r in self.tracker.rows]  # of earlier processes too
        content = {
            "order": list(self.config.order),
            "seed": self.config.seed,
            "overfit": self.overfit,
            "tasks": drops(rows),
            "minutes": round(sum(last_seconds(self.tracker.rows).values()) / 60, 2),
            "minutes_by_stage": {k: round(v / 60, 2) for k, v in last_seconds(self.tracker.rows).items()},
            "peak_memory_mib": max([peak_memory(self.device), *peaks]),
            "machine": cpu_name() if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "device": str(self.device),
            "dtype": str(self.dtype or torch.float32),
            "threads": torch.get_num_threads(),
            **provenance(),
        }
        with noted("the summary is only printed"):
            write_text(self.folder / SUMMARY, json.dumps(content, indent=2) + "\n")
        return content
