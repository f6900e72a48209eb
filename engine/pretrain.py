"""Stage 0: a backbone without public weights learns, from photographs without labels, what a public network knows.

Views of photographs (data.views) are shown to both; linear readouts of the backbone's maps are to reproduce the
teacher's outputs (models.feature_distillation). A step's views follow from (seed, step) alone, so a resumed run ends
the same on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from timm.optim import Muon
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from data.photos import mini_names, read_photos
from data.views import random_views
from engine.settings.config import Config, to_dict
from engine.storage.checkpoint import backbone_of, load, load_optimizer, provenance, save
from engine.storage.device import cpu_name, pick_device, training_precision
from engine.storage.errors import UserError, noted
from engine.storage.files import run_lock, write_text
from engine.tracking.plots import plot_pretraining
from engine.tracking.tracker import Row, Tracker
from engine.training.batches import stable_seed
from engine.training.prefetch import halve_threads, prefetch
from engine.training.rates import flat_then_cosine
from engine.training.stage import check_losses, check_norm
from engine.training.teacher_runtime import Teach, public_teacher, query_teacher, teacher_side
from models.backbones import build_backbone, image_statistics
from models.feature_distillation import FeatureDistillation
from models.onehead import count_parameters
from models.public_teacher import TeacherOutputs

ROWS, LONGEST = 100, 200
"""Rows of figures in a whole run, at least; most steps between two of them, after which a run may stop and go on."""
NORM_BATCHES = 100
"""Batches from which norms are estimated anew at the end."""
WARMUP = 0.02
"""Share of the steps with a rising rate."""
FALLBACK_SCALE = 0.2
"""Learning rate of what Muon does not learn, as a share of Muon's (docs/search-log.md)."""


def pretrain(config: Config, resume: bool = False) -> None:
    """Run stage 0 and write pretrain.pt into the run's folder. Raises UserError and DataError."""
    folder = Path(config.runs) / config.name
    with run_lock(folder):
        if (folder / "pretrain.pt").is_file():
            print(f"stage pretrain: done before, {folder / 'pretrain.pt'}")
            return
        unfinished = load(folder / "last.pt") if (folder / "last.pt").is_file() else None
        if unfinished and not resume:
            raise UserError(f"{folder} holds an interrupted stage: add --resume to go on, or give another --name")
        check_networks(config, folder, unfinished)
        Pretraining(config, folder, unfinished).run()


def check_networks(config: Config, folder: Path, unfinished: dict[str, Any] | None) -> None:
    """Refuse, before photographs are read, an unknown backbone and networks other than the interrupted ones."""
    try:
        build_backbone(config.model.backbone)
    except ValueError as error:
        raise UserError(str(error)) from None
    if unfinished and unfinished["stage"] != "pretrain":
        raise UserError(f"{folder}/last.pt is of stage {unfinished['stage']}: give another --name")
    if unfinished:
        before = unfinished["config"]
        for key, old, new in (
            ("model.backbone", before["model"]["backbone"], config.model.backbone),
            ("pretrain.teacher", before["pretrain"]["teacher"], config.pretrain.teacher),
        ):
            if old != new:
                raise UserError(f"{folder}/last.pt has {key} {old}, not {new}: resume with it, or give another --name")


class Pretraining:
    """Stage 0 of one run; `unfinished` is the content of its last.pt, or None."""

    def __init__(self, config: Config, folder: Path, unfinished: dict[str, Any] | None) -> None:
        self.config, self.folder = config, folder
        settings = config.pretrain
        device = pick_device()
        precision = training_precision(config.precision, device)
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision
        )
        if self.accelerator.num_processes > 1:
            raise UserError("--stage pretrain runs in one process: start it with `python -m`, not accelerate launch")
        self.device = self.accelerator.device
        self.images = read_photos(settings.sources, settings.side, without=mini_names()).to(self.device)
        print(f"stage 0: {len(self.images)} photographs", flush=True)
        set_seed(config.seed)
        self.teacher, self.source = public_teacher(settings.teacher, settings.teacher_weights)
        self.backbone = build_backbone(config.model.backbone)
        channels = self.backbone.channels
        self.distillation = FeatureDistillation(
            channels, self.teacher.channels, self.teacher.features, self.teacher.classes
        )
        if settings.init and not unfinished:
            self.start_from(load(settings.init))
        for module in (self.backbone, self.distillation, self.teacher):
            module.to(self.device).to(memory_format=torch.channels_last)
        self.statistics = [s.to(self.device) for s in image_statistics(self.backbone)]
        self.optimizer = self.accelerator.prepare(self.muon())
        self.ema = ModelEmaV3(self.backbone, decay=settings.ema, use_warmup=True)
        self.steps, self.step, self.seconds = max(1, settings.views // settings.batch), 0, 0.0
        self.tracker = Tracker(folder, config.track, to_dict(config), unfinished["rows"] if unfinished else [])
        if unfinished:
            self.resume(unfinished)

    def start_from(self, content: dict[str, Any]) -> None:
        """Take a checkpoint's backbone, and its readouts if they are of the same teacher."""
        self.backbone.load_state_dict(backbone_of(content, str(self.config.pretrain.init), self.config.model.backbone))
        readouts = {**content.get("readouts", {}), **{f"logits.{k}": v for k, v in content.get("readout", {}).items()}}
        own = self.distillation.state_dict()
        if {k: v.shape for k, v in readouts.items()} == {k: v.shape for k, v in own.items()}:
            self.distillation.load_state_dict(readouts)

    def muon(self) -> Muon:
        """Muon (arXiv 2502.16982: updates of AdamW's size) for convolutions and matrices, readouts among them.

        Depthwise filters, norms and biases are learnt by its fallback, NAdamW; norms and biases do not decay.
        """
        parameters = [*self.backbone.parameters(), *self.distillation.parameters()]
        settings = self.config.pretrain
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return Muon(groups, lr=settings.lr, momentum=0.95, nesterov=True, fallback_lr_scale=FALLBACK_SCALE)

    def resume(self, unfinished: dict[str, Any]) -> None:
        """Take up an interrupted run."""
        self.backbone.load_state_dict(unfinished["backbone"])
        self.distillation.load_state_dict(unfinished["distillation"])
        self.ema.module.load_state_dict(unfinished["ema"])
        load_optimizer(self.optimizer, unfinished, self.folder / "last.pt")
        self.step, self.seconds = unfinished["step"], unfinished["seconds"]
        if unfinished["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(unfinished["scaler"])

    def run(self) -> None:
        """All steps, or as many as the minutes allow; then pretrain.pt and the curves."""
        write_text(self.folder / "config.yaml", yaml.safe_dump(to_dict(self.config), sort_keys=False))
        size = f"{count_parameters(self.backbone) / 1e6:.2f} M parameters"
        print(f"{size}, {self.device}; teacher: {self.source}", flush=True)
        with halve_threads(self.device):
            teach = query_teacher(self.teacher, self.config.pretrain.runtime, self.accelerator)
            if not self.train(teach):
                minutes = self.config.pretrain.minutes
                print(f"stage pretrain: {self.step} of {self.steps} steps after {minutes} minutes; --resume goes on")
                self.tracker.close()
                return
            self.reestimate_norms()
        save(self.folder / "pretrain.pt", self.published())
        (self.folder / "last.pt").unlink(missing_ok=True)
        with noted("pretrain.png was not drawn"):
            plot_pretraining(self.tracker.rows, self.folder / "pretrain.png")
        self.tracker.close()

    def train(self, teach: Teach) -> bool:
        """Train up to the last step, or until the time is over; returns whether the end was reached."""
        settings, begin = self.config.pretrain, time.monotonic()
        interval, before, sums = max(1, min(LONGEST, self.steps // ROWS)), self.seconds, dict[str, Tensor]()
        saved = begin
        batches = prefetch(self.batches(teach, self.step), 2 if self.device.type == "cpu" else 0)
        bar = tqdm(total=self.steps * settings.batch, initial=self.step * settings.batch, unit=" views", disable=None)
        for views, outputs in batches:
            for name, value in self.learn(views, outputs).items():
                sums[name] = sums.get(name, 0.0) + value
            self.step += 1
            bar.update(settings.batch)
            self.seconds = before + time.monotonic() - begin
            over = settings.minutes is not None and time.monotonic() - begin > 60 * settings.minutes
            if self.step % interval == 0 or self.step == self.steps:
                self.log(sums, views, interval)
                sums = {}
            if self.step % interval == 0 and (over or time.monotonic() - saved >= self.config.track.save_seconds):
                save(self.folder / "last.pt", self.content())
                saved = time.monotonic()
                if over and self.step < self.steps:
                    batches.close()
                    return False
        bar.close()
        return True

    def batches(self, teach: Teach, first: int) -> Iterator[tuple[Tensor, TeacherOutputs]]:
        """Views (B, 3, S, S) of each step from `first` on, and the teacher's outputs for them."""
        for step in range(first, self.steps):
            views = self.views(step, self.side(step))
            yield views, teach(views, teacher_side(views.shape[-1]))

    def side(self, step: int) -> int:
        """Side of a step's views."""
        sizes = self.config.pretrain.sizes
        return sizes[step * len(sizes) // self.steps]

    def views(self, step: int, side: int) -> Tensor:
        """The views of one step."""
        generator = torch.Generator().manual_seed(stable_seed(self.config.seed, "views", step))
        settings = self.config.pretrain
        return random_views(self.images, settings.batch, side, settings.view, generator)

    def learn(self, views: Tensor, outputs: TeacherOutputs) -> dict[str, Tensor]:
        """One optimiser step; returns its loss terms and the gradient's norm, still on the device."""
        factor = flat_then_cosine(self.step, self.steps, WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.pretrain.lr * factor
        self.backbone.train()
        with self.accelerator.autocast():
            losses = self.distillation(self.backbone(self.normalised(views)), outputs)
        self.optimizer.zero_grad()
        self.accelerator.backward(torch.stack(list(losses.values())).sum())
        parameters = [*self.backbone.parameters(), *self.distillation.parameters()]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.pretrain.clip)
        if self.accelerator.scaler is not None:
            norm = norm.nan_to_num(0.0, 0.0)  # of a step that the scaler skips
        self.optimizer.step()
        self.ema.update(self.backbone, step=self.step)
        return {k: v.detach() for k, v in losses.items()} | {"norm": norm}

    def normalised(self, views: Tensor) -> Tensor:
        """Views as the backbone takes them."""
        mean, std = self.statistics
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)

    def log(self, sums: dict[str, Tensor], views: Tensor, interval: int) -> None:
        """Check and record the means since the last row, of which there is one each `interval` steps and at the end."""
        count = self.step % interval or interval
        losses = {k: round(float(v) / count, 5) for k, v in sums.items()}
        norm, where = losses.pop("norm"), "stage pretrain"
        check_losses(losses, where, self.step, self.folder, "pretrain.lr")
        if self.accelerator.scaler is None:  # a scaler skips a step that is not finite by itself
            check_norm(norm, where, self.step, self.folder, "pretrain.lr")
        row: Row = {
            "stage": "pretrain",
            "epoch": math.ceil(self.step / interval),
            "views": self.step * len(views),
            "side": views.shape[-1],
            "loss": round(sum(losses.values()), 5),
            "norm": norm,
            "seconds": round(self.seconds, 1),
            "losses": losses,
        }
        self.tracker.log(row, interval)
        print("  ".join(f"{k} {v}" for k, v in row.items() if k not in ("stage", "losses")), flush=True)

    @torch.no_grad()
    def reestimate_norms(self) -> None:
        """Estimate the averaged network's norms anew, at the size it is used at (arXiv 1906.06423)."""
        side = self.config.data.size
        shown = (self.normalised(self.views(self.steps + i, side)) for i in range(NORM_BATCHES))
        update_bn(shown, self.ema.module, self.device)

    def published(self) -> dict[str, Any]:
        """Content of pretrain.pt: the averaged backbone, its readout of classes, and the others, to go on from."""
        return {
            "architecture": {"backbone": self.config.model.backbone},
            "model": {f"backbone.{k}": v for k, v in self.ema.module.state_dict().items()},
            "readout": self.distillation.logits.state_dict(),
            "readouts": {k: v for k, v in self.distillation.state_dict().items() if not k.startswith("logits.")},
            **self.common(),
        }

    def content(self) -> dict[str, Any]:
        """Content of last.pt."""
        scaler = self.accelerator.scaler
        return {
            "backbone": self.backbone.state_dict(),
            "distillation": self.distillation.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            **self.common(),
        }

    def common(self) -> dict[str, Any]:
        """What both kinds of checkpoint hold."""
        return {
            "stage": "pretrain",
            "step": self.step,
            "config": to_dict(self.config),
            "teacher": self.source,
            "rows": self.tracker.rows,
            "seconds": self.seconds,
            "provenance": {**provenance(), "machine": cpu_name()},
        }
