"""Stage 0: from images sorted by class to a network whose every part but the class rows is trained.

Two phases on mosaics of such images (see data.mosaics). "tiles": backbone and neck learn to classify tiles from pooled
features, at all three strides. "mosaics": the whole network learns boxes, masks and image labels of the same pictures.
Every epoch follows from (seed, phase, epoch) alone, so a resumed run ends bit-identical.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.class_images import mini_names, read_class_images
from data.mosaics import MEAN_TILES, Mosaic, MosaicDataset
from engine.evaluation.heldout import heldout_accuracy
from engine.settings.config import Config, OptimConfig, to_dict
from engine.storage.checkpoint import load, load_optimizer, load_weights, model_content, provenance, save
from engine.storage.device import pick_device, pick_precision
from engine.storage.errors import UserError
from engine.storage.files import run_lock, write_text
from engine.tracking.plots import plot_pretraining
from engine.tracking.tracker import Row, Tracker
from engine.training.batches import Batch, EpochBatches, collate, stable_seed
from engine.training.rates import parameter_groups, rate
from engine.training.stage import check_losses, check_norm
from models.criterion import Criterion
from models.denoising import denoising_boxes
from models.onehead import OneHead, count_parameters
from models.targets import Targets
from models.tiles import NO_TILE, tile_logits, tile_loss

PHASES = ("tiles", "mosaics")
TILE_WEIGHT = {"tiles": 1.0, "mosaics": 3.0}
"""Weight of the classification of tiles: the second phase keeps it, or the features that the first gave would fade."""


def pretrain(config: Config, resume: bool = False) -> None:
    """Run stage 0 and write pretrain.pt into the run's folder. Raises UserError and DataError."""
    folder = Path(config.runs) / config.name
    with run_lock(folder):
        pretrain_in(folder, config, resume)


def pretrain_in(folder: Path, config: Config, resume: bool) -> None:
    """Run stage 0 in a folder that no other run works in."""
    if (folder / "pretrain.pt").is_file():
        print(f"stage pretrain: done before, {folder / 'pretrain.pt'}")
        return
    unfinished = load(folder / "last.pt") if (folder / "last.pt").is_file() else None
    if unfinished and not resume:
        raise UserError(f"{folder} already holds an interrupted stage: add --resume to go on, or give another --name")
    Pretraining(config, folder, unfinished).run()


class Pretraining:
    """Stage 0 of one run; `unfinished` is the content of its last.pt, or None."""

    def __init__(self, config: Config, folder: Path, unfinished: dict[str, Any] | None) -> None:
        self.config, self.folder = config, folder
        device = pick_device()
        precision = pick_precision(device) if config.precision == "auto" else config.precision
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision
        )
        if self.accelerator.num_processes > 1:
            raise UserError("--stage pretrain runs in one process: start it with `python -m`, not accelerate launch")
        self.device = self.accelerator.device
        self.images, self.heldout = read_class_images(config.pretrain.sources, without=mini_names()).split()
        names = self.images.names
        print(f"stage 0: {len(self.images)} images, {len(self.heldout)} held out, {len(names)} classes", flush=True)
        set_seed(config.seed)
        classes = {"det": names, "seg": ("background", *names), "cls": names}
        self.model = OneHead(config.model, classes, config.data.size)
        if config.pretrain.init and not unfinished:
            load_weights(self.model, config.pretrain.init)
        self.criterion = Criterion(config.loss)
        self.phase, self.epoch, self.seconds = PHASES[0], 0, 0.0
        self.tracker = Tracker(folder, config.track, to_dict(config), unfinished["rows"] if unfinished else [])
        self.model.to(self.device).to(memory_format=torch.channels_last)
        if unfinished:
            self.model.load_state_dict(unfinished["model"])
            self.phase, self.epoch, self.seconds = (unfinished[k] for k in ("phase", "epoch", "seconds"))
        self.begin()
        if unfinished:
            self.ema.module.load_state_dict(unfinished["ema"])
            load_optimizer(self.optimizer, unfinished, folder / "last.pt")
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(unfinished["scaler"])

    def begin(self) -> None:
        """Optimiser, averages and mosaics of a phase."""
        self.accelerator.free_memory()  # it would go on unscaling gradients for the optimiser of the phase before
        config = self.config.pretrain
        first = self.phase == PHASES[0]
        peak, self.epochs = (config.tiles_lr, config.tiles) if first else (config.mosaics_lr, config.mosaics)
        backbone_lr = 1.0 if first else config.mosaics_backbone_lr
        optim = OptimConfig(weight_decay=config.weight_decay, backbone_lr=backbone_lr)
        groups = parameter_groups(self.model, optim, peak)
        self.peaks = [g["lr"] for g in groups]
        self.optimizer = self.accelerator.prepare(torch.optim.AdamW(groups, fused=True))
        self.ema = ModelEmaV3(self.model, decay=config.ema, use_warmup=True)
        length = max(config.batch, round(len(self.images) / MEAN_TILES))
        seed = stable_seed(self.config.seed, self.phase)
        self.mosaics = MosaicDataset(self.images, self.config.data.size, length, config.mosaic, seed=seed)
        self.batches = EpochBatches(length, config.batch, seed)
        workers = self.config.data.workers
        self.loader: DataLoader[tuple[Batch, Tensor]] = DataLoader(
            self.mosaics,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            num_workers=2 * (self.device.type == "cuda") if workers is None else workers,
            collate_fn=collate_mosaics,  # type: ignore[arg-type]
        )

    def run(self) -> None:
        """Both phases, then pretrain.pt and the curves."""
        write_text(self.folder / "config.yaml", yaml.safe_dump(to_dict(self.config), sort_keys=False))
        print(f"{count_parameters(self.model) / 1e6:.2f} M parameters, {self.device}", flush=True)
        saved = time.monotonic()
        while True:
            while self.epoch < self.epochs:
                row = self.train_epoch()
                self.tracker.log(row, len(self.loader))
                print("  ".join(f"{k} {v}" for k, v in row.items() if k != "losses"), flush=True)
                if time.monotonic() - saved >= self.config.track.save_seconds:
                    save(self.folder / "last.pt", self.content())
                    saved = time.monotonic()
            if self.phase == PHASES[-1]:
                break
            self.next_phase()
        save(self.folder / "pretrain.pt", {**model_content(self.ema.module), **self.common()})
        (self.folder / "last.pt").unlink(missing_ok=True)
        plot_pretraining(self.tracker.rows, self.folder / "pretrain.png")
        self.tracker.close()

    def next_phase(self) -> None:
        """Go on from the averaged weights; the image label is read as the tiles' classes were."""
        self.model.load_state_dict(self.ema.module.state_dict())
        self.model.head.copy_rows("det", "cls")
        self.phase, self.epoch = PHASES[1], 0
        self.begin()

    def side(self) -> int:
        """Side of the canvas in this epoch."""
        sizes = self.config.pretrain.sizes
        if not sizes or self.phase == PHASES[-1]:
            return self.config.data.size
        return sizes[self.epoch * len(sizes) // self.epochs]

    def train_epoch(self) -> Row:
        """One pass over as many tiles as there are images; returns the row of figures."""
        start = time.monotonic()
        set_seed(stable_seed(self.config.seed, self.phase, self.epoch))
        self.mosaics.set_epoch(self.epoch)
        self.mosaics.size = self.side()
        self.batches.epoch = self.epoch
        self.model.train()
        sums: dict[str, float] = {}
        steps = len(self.loader)
        for i, (batch, slots) in enumerate(tqdm(self.loader, desc=self.phase, leave=False, disable=None)):
            factor = rate(self.epoch * steps + i, self.epochs * steps, 0.05)
            for group, peak in zip(self.optimizer.param_groups, self.peaks):
                group["lr"] = peak * factor
            for key, value in self.step(batch, slots, self.epoch * steps + i).items():
                sums[key] = sums.get(key, 0.0) + value / steps
        self.epoch += 1
        accuracy = heldout_accuracy(self.ema.module, self.heldout, self.config.data.size, self.accelerator)
        self.seconds += time.monotonic() - start
        losses = {k: round(v, 5) for k, v in sums.items()}
        seconds = round(self.seconds, 1)
        return {
            "stage": self.phase,
            "epoch": self.epoch,
            "loss": round(sum(losses.values()), 5),
            **accuracy,
            "seconds": seconds,
            "losses": losses,
        }

    def step(self, batch: Batch, slots: Tensor, number: int) -> dict[str, float]:
        """One optimiser step; returns its loss terms."""
        images = batch[0].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets, slots = batch[1].to(self.device), slots.to(self.device)
        with self.accelerator.autocast():
            maps = self.model.features(images)
            boxes, labels = padded(targets)
            losses = {"tile": TILE_WEIGHT[self.phase] * tile_loss(tile_logits(self.model.head, maps, boxes), labels)}
            if self.phase == PHASES[1]:
                losses |= self.whole(maps, targets, slots)
        values = {k: float(v.detach()) for k, v in losses.items()}
        where, lower = f"stage pretrain, {self.phase}", f"pretrain.{self.phase}_lr"
        check_losses(values, where, number, self.folder, lower)
        self.accelerator.backward(torch.stack(list(losses.values())).sum())
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), OptimConfig.clip))
        if self.accelerator.scaler is None:  # a scaler skips a step that is not finite by itself
            check_norm(norm, where, number, self.folder, lower)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, step=number)
        return values

    def whole(self, maps: list[Tensor], targets: Targets, slots: Tensor) -> dict[str, Tensor]:
        """Losses of all outputs of the head."""
        config, boxes, match = self.config.loss, None, None
        if config.denoise:
            boxes, match = denoising_boxes(targets, self.config.model.queries, config.denoise)
        return self.criterion(self.model.head(maps, None, config.groups, boxes, slots), targets, match)

    def common(self) -> dict[str, Any]:
        """What both kinds of checkpoint hold."""
        return {
            "stage": "pretrain",
            "phase": self.phase,
            "epoch": self.epoch,
            "config": to_dict(self.config),
            "rows": self.tracker.rows,
            "seconds": self.seconds,
            "provenance": provenance(),
        }

    def content(self) -> dict[str, Any]:
        """Content of last.pt."""
        scaler = self.accelerator.scaler
        return {
            **model_content(self.model),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            **self.common(),
        }


def collate_mosaics(mosaics: Sequence[Mosaic]) -> tuple[Batch, Tensor]:
    """Stack mosaics to images and targets, and their slots to (B, K)."""
    return collate([m.sample for m in mosaics]), torch.stack([m.slots for m in mosaics])


def padded(targets: Targets) -> tuple[Tensor, Tensor]:
    """Boxes (B, T, 4) and labels (B, T) of a batch, filled up with empty boxes labelled NO_TILE."""
    boxes = torch.nn.utils.rnn.pad_sequence(targets.boxes, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(targets.labels, batch_first=True, padding_value=NO_TILE)
    return boxes, labels
