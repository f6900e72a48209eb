"""One stage: from a model and a data set to the stage's checkpoint.

A step: batch -> remedies -> forward -> losses + penalties -> backward -> clip -> optimiser -> averaged weights.
Everything random in an epoch follows from (seed, stage, epoch), so a run that is killed and resumed ends bit-identical.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from tqdm import tqdm

from continual import Losses, Stage, Step
from continual.base import TASK_SPECIFIC
from engine.settings.config import to_dict
from engine.storage.checkpoint import load_optimizer, model_content, provenance, save
from engine.storage.device import peak_memory
from engine.storage.errors import UserError
from engine.training.batches import Batch, stable_seed
from engine.training.distributed import synchronise
from engine.training.loaders import set_epoch
from engine.training.rates import parameter_groups, rate, shared_rate
from engine.training.run import Run
from engine.training.summary import headline, rounded
from models.absorption import absorb_statistics
from models.criterion import Criterion
from models.denoising import denoising_boxes
from models.norms import freeze_statistics
from models.onehead import OneHead


def check_losses(values: dict[str, float], where: str, step: int, folder: Path, setting: str = "optim.lr") -> None:
    """Raise UserError when a loss is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(broken(f"{where}: loss {name!r} is {value} at step {step}", folder, setting))


def check_norm(norm: float, where: str, step: int, folder: Path, setting: str = "optim.lr") -> None:
    """Raise UserError when the gradients are not finite: one step along them spoils every weight."""
    if not math.isfinite(norm):
        raise UserError(broken(f"{where}: the gradient's norm is {norm} at step {step}", folder, setting))


def broken(reason: str, folder: Path, setting: str = "optim.lr") -> str:
    """Message for a training that cannot continue; `setting` is the one to lower."""
    return (
        f"{reason}. The checkpoints in {folder} are the last good ones; "
        f"lower {setting} or set --precision fp32, then --resume"
    )


class StageLoop:
    """Trains `model` on the tasks of one stage; `resume` is the content of last.pt of this very stage, or None."""

    def __init__(self, run: Run, name: str, model: OneHead, resume: dict[str, Any] | None) -> None:
        config = run.config
        self.run, self.name = run, name
        self.stage = run.begin(name, model)
        self.trained_images = run.trained_images(name, (*self.stage.tasks, *self.stage.old))
        self.freeze = run.freezes(name)
        if self.freeze:
            absorb_statistics(model)
        self.epochs = getattr(config.optim.epochs, name)
        self.criterion = Criterion(config.loss, run.mean_count, run.mask_named(self.stage))
        self.loaders = run.loaders(name)
        self.steps = len(self.loaders["augmented"]) * self.epochs
        self.model = model.to(run.device).to(memory_format=torch.channels_last)
        self.hold_backbone = not config.optim.backbone_lr
        self.model.backbone.requires_grad_(not self.hold_backbone)
        if run.accelerator.num_processes > 1:
            synchronise(self.model)
        self.ema = ModelEmaV3(self.model, decay=config.optim.ema, use_warmup=True)
        shared = getattr(config.optim.shared_lr, name)
        groups = parameter_groups(self.model, config.optim, config.optim.lr, shared, self.task_specific())
        optimizer = torch.optim.AdamW(groups, fused=True)
        self.peak = [g["lr"] for g in optimizer.param_groups]
        self.epoch, self.seconds = 0, 0.0
        try:
            for remedy in run.remedies.values():
                remedy.before_stage(self.stage)
        except ValueError as error:
            raise UserError(f"stage {name}: {error}") from None
        if resume is not None:
            self.restore(resume, optimizer)
        self.wrapped, self.optimizer = run.accelerator.prepare(self.model, optimizer)
        if resume is not None and resume["scaler"] and run.accelerator.scaler is not None:
            run.accelerator.scaler.load_state_dict(resume["scaler"])

    def task_specific(self) -> Collection[str]:
        """Parameters that no two tasks share."""
        return TASK_SPECIFIC

    def restore(self, content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Take up weights, averages, optimiser and position from last.pt.

        Raises UserError where no epoch is left, or the optimiser is another.
        """
        file = self.run.folder / "last.pt"
        self.epoch, self.seconds = content["epoch"], content["seconds"]
        if self.epoch >= self.epochs:
            key, least = f"optim.epochs.{self.name}", self.epoch + 1
            raise UserError(f"{key} is {self.epochs}, but {file} has had {self.epoch}: give {least} or more")
        self.model.load_state_dict(content["model"])
        self.ema.module.load_state_dict(content["ema"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        load_optimizer(optimizer, content, file)
        for group, today in zip(optimizer.param_groups, settings):
            group.update(today)  # torch takes up those of the file, too

    def train(self) -> OneHead:
        """Run the remaining epochs, write the stage's checkpoint and return the averaged model."""
        run, saved = self.run, time.monotonic()
        finished = replace(self.stage, model=self.ema.module)
        while self.epoch < self.epochs:
            start = time.monotonic()
            row = self.train_epoch()
            self.seconds += time.monotonic() - start
            self.epoch += 1
            self.end_training(finished)
            row |= {"seconds": round(self.seconds, 1), "peak_memory_mib": peak_memory(run.device)}
            if run.is_main:
                self.log(row)
                if time.monotonic() - saved >= run.config.track.save_seconds and self.epoch < self.epochs:
                    save(run.folder / "last.pt", self.content())
                    saved = time.monotonic()
            run.accelerator.wait_for_everyone()
        run.absorb_before_freezing(self.name, self.ema.module)  # before remedies measure importance
        for remedy in run.remedies.values():
            remedy.after_stage(finished)
        if run.is_main:
            save(run.folder / f"{self.name}.pt", self.finished())
            (run.folder / "last.pt").unlink(missing_ok=True)
        run.accelerator.wait_for_everyone()
        run.accelerator.free_memory()
        averaged: OneHead = self.ema.module
        return averaged

    def log(self, row: dict[str, Any]) -> None:
        """Evaluate the averaged weights, if it is time, and record the epoch."""
        run, last = self.run, self.epoch == self.epochs
        evaluation = run.evaluate(self.ema.module) if self.epoch in self.evaluation_epochs() else None
        run.tracker.log({**row, **(rounded(evaluation) if evaluation else {})}, len(self.loaders["augmented"]))
        if evaluation and not last:
            run.print(f"stage {self.name}, epoch {self.epoch} of {self.epochs}: {headline(run.tracker.rows[-1])}")
        if evaluation and last:
            run.tracker.stage_end(evaluation, run.evaluator, self.ema.module)

    def end_training(self, finished: Stage) -> None:
        """Let remedies change the averaged weights once no epoch is left: before they are evaluated."""
        if self.epoch >= self.epochs:
            for remedy in self.run.remedies.values():
                remedy.after_training(finished)

    def evaluation_epochs(self) -> set[int]:
        """Epochs after which all three sets are evaluated, evenly spread, the last one included."""
        count = min(self.run.config.track.evals, self.epochs)
        return {round(self.epochs * (i + 1) / count) for i in range(count)}

    def train_epoch(self) -> dict[str, Any]:
        """One pass over the images; returns the row for metrics.jsonl."""
        run = self.run
        seed = stable_seed(run.config.seed, self.name, self.epoch)
        set_seed(stable_seed(seed, run.accelerator.process_index))
        plain = self.epoch >= self.epochs * (1 - run.config.data.plain_end)
        loader = self.loaders["plain" if plain else "augmented"]
        set_epoch(loader, self.epoch)
        self.wrapped.train()
        if self.freeze:
            freeze_statistics(self.wrapped)
        if self.hold_backbone:
            self.model.backbone.eval()
        sums: dict[str, float] = {}
        done = self.epoch * len(loader)
        for i, batch in enumerate(self.bar(loader)):
            lr = self.set_rate(done + i)
            for key, value in self.step(batch, done + i).items():
                sums[key] = sums.get(key, 0.0) + value
        means = {k: round(v / len(loader), 5) for k, v in sums.items()}
        general = {k: means.pop(k, 0.0) for k in ("loss", "grad_norm")}
        return {"stage": self.name, "epoch": self.epoch + 1, "lr": lr, **general, "losses": means}

    def bar(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        """A progress bar over all steps of the stage, with its ETA; off where there is no terminal."""
        off = None if self.run.is_main else True
        length = len(loader)  # type: ignore[arg-type]
        bar = tqdm(
            loader,
            desc=f"{self.name} {self.epoch + 1}/{self.epochs}",
            total=self.steps,
            initial=self.epoch * length,
            disable=off,
            leave=False,
            unit="step",
        )
        self.progress = bar
        return bar

    def set_rate(self, step: int) -> float:
        """Set the learning rates of a step and return the highest."""
        optim = self.run.config.optim
        factor = rate(step, self.steps, optim.warmup)
        shared = shared_rate(step, self.steps, optim.warmup, optim.probe) if self.stage.old else factor
        for group, peak in zip(self.optimizer.param_groups, self.peak):
            group["lr"] = peak * (factor if group["own"] else shared)
        return self.highest_rate()

    def highest_rate(self) -> float:
        """Of all groups, at this step."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def step(self, batch: Batch, number: int) -> dict[str, float]:
        """One optimiser step; returns its loss terms."""
        accelerator = self.run.accelerator
        images, targets = batch
        images = images.to(self.run.device, memory_format=torch.channels_last, non_blocking=True)
        step = Step(images, targets.to(self.run.device))
        with accelerator.autocast():
            for remedy in self.run.remedies.values():
                remedy.before_step(step)
        losses = self.losses(step)
        if not any(loss.requires_grad for loss in losses.values()):  # no image is annotated: masks may be all void
            return {"loss": 0.0}
        terms = torch.stack(list(losses.values()))
        accelerator.backward(terms.sum())
        clipped = accelerator.clip_grad_norm_(self.wrapped.parameters(), self.run.config.optim.clip)
        *found, norm = torch.cat([terms.detach(), clipped[None]]).tolist()  # a step's one wait for what a GPU computes
        values = dict(zip(losses, found))
        where = f"stage {self.name}, epoch {self.epoch + 1}"
        check_losses(values, where, number, self.run.folder)
        if accelerator.scaler is None:  # a scaler skips a step that is not finite by itself
            check_norm(norm, where, number, self.run.folder)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, step=number)
        self.progress.set_postfix(loss=f"{sum(values.values()):.3f}", lr=f"{self.highest_rate():.1e}")
        skipped = not math.isfinite(norm)  # by the scaler, to which an overflow says that its scale is too large
        return {"loss": sum(values.values()), "grad_norm": 0.0 if skipped else norm, **values}

    def losses(self, step: Step) -> Losses:
        """Forward pass, criterion and penalties."""
        config = self.run.config.loss
        boxes, match, groups = None, None, 0
        if "det" in self.stage.tasks:
            groups = config.groups
            if config.denoise:
                boxes, match = denoising_boxes(step.targets, self.model.config.queries, config.denoise)
        try:
            outputs = self.wrapped(step.images, step.queries, groups, boxes)
            losses = self.criterion(outputs, step.targets, match)
        except FloatingPointError as error:
            self.stop(str(error))
        for remedy in self.run.remedies.values():
            losses.update(remedy.penalty(step, outputs))
        return losses

    def stop(self, reason: str) -> None:
        """Raise UserError: where the training broke and what is left."""
        raise UserError(broken(f"stage {self.name}, epoch {self.epoch + 1}: {reason}", self.run.folder))

    def common(self) -> dict[str, Any]:
        """What both kinds of checkpoint hold."""
        run = self.run
        return {
            "stage": self.name,
            "old": list(self.stage.old),
            "config": to_dict(run.config),
            "rows": run.tracker.rows,
            "training_images": self.trained_images,
            "seconds": self.seconds,
            "remedies": {k: r.state_dict() for k, r in run.remedies.items()},
            "provenance": provenance(),
        }

    def content(self) -> dict[str, Any]:
        """Content of last.pt: all that a resumed run needs."""
        scaler = self.run.accelerator.scaler
        return {
            **model_content(self.model),
            "ema": self.ema.module.state_dict(),
            "epoch": self.epoch,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            **self.common(),
        }

    def finished(self) -> dict[str, Any]:
        """Content of the stage's checkpoint: the averaged weights, which everything later uses."""
        return {**model_content(self.ema.module), **self.common()}
