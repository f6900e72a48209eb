"""How long inference and training steps take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from data.synthetic import scene
from data.types import TASKS, Task
from engine.settings.config import OptimConfig
from engine.storage.device import peak_memory
from engine.training.rates import parameter_groups
from models.criterion import Criterion, LossConfig
from models.denoising import denoising_boxes
from models.deploy import Deployed
from models.onehead import OneHead
from models.targets import NO_CLASS, VOID, Targets

Figures = dict[str, Any]
Run = Callable[[], object]


def measure(name: str, run: Run, device: torch.device, warmup: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls after `warmup` calls that are not counted."""
    times = [clock(run, device) for _ in tqdm(range(warmup + runs), desc=name, unit="run", leave=False, disable=None)]
    return times[warmup:]


def take_turns(runs: Mapping[str, Run], device: torch.device, warmup: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of several things in each of `rounds` rounds, so that a machine that slows down slows them all.

    In a round each is called twice and the second call counts: what is in the caches is its own.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in tqdm(range(warmup + rounds), desc="inference", unit="round", leave=False, disable=None):
        for name, run in runs.items():
            run()
            elapsed = clock(run, device)
            if i >= warmup:
                times[name].append(elapsed)
    return times


def clock(run: Run, device: torch.device) -> float:
    """Milliseconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return 1000 * (time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(name: str, times: Sequence[float]) -> Figures:
    """Median and 95th percentile of `times` under `name`."""
    median, p95 = np.percentile(times, [50, 95])
    return {f"{name}_median": round(float(median), 3), f"{name}_p95": round(float(p95), 3)}


def drawn_image(size: int) -> Tensor:
    """A drawn scene (1, 3, size, size) in 0..1: masks of noise would have far more borders than those of pictures."""
    picture = scene(np.random.default_rng(0), size)[0].convert("RGB").resize((size, size))
    return pil_to_tensor(picture)[None].float() / 255


def inference(model: OneHead, size: int, dtype: torch.dtype | None) -> Run:
    """A function that takes one image from the input tensor to everything a user reads."""
    device, deployed = model.mean.device, Deployed(model)
    image = drawn_image(size).to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> object:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return deployed(image)

    return run


def time_training(model: OneHead, size: int, dtype: torch.dtype | None, batch: int, warmup: int, runs: int) -> Figures:
    """Time per image of a training step of each stage; the weights of `model` change."""
    device = model.mean.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    figures: Figures = {}
    for stage in TASKS:
        step = training_step(model, stage, size, dtype, batch)
        times = measure(f"training {stage}", step, device, warmup, runs)
        figures |= summary(f"train_{stage}_ms_per_image", [t / batch for t in times])
    return {**figures, "training_peak_mib": peak_memory(device)}


def training_step(
    model: OneHead, stage: Task, size: int, dtype: torch.dtype | None, batch: int
) -> Callable[[], dict[str, Tensor]]:
    """A function that does one optimiser step of a stage on one drawn batch and returns its losses."""
    device, losses, optim = model.mean.device, LossConfig(), OptimConfig()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
    targets = draw_targets(model, stage, size, batch, generator).to(device)
    criterion = Criterion(losses)
    # So small a rate leaves the weights as they are: every run does the same work.
    optimizer = torch.optim.AdamW(parameter_groups(model, optim, lr=1e-9), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    model.train()

    def step() -> dict[str, Tensor]:
        boxes, match, groups = None, None, 0
        if stage == "det":
            groups = losses.groups
            boxes, match = denoising_boxes(targets, model.config.queries, losses.denoise)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = model(images, None, groups, boxes)
        terms = criterion(outputs, targets, match)
        scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    return step


def draw_targets(model: OneHead, stage: Task, size: int, batch: int, generator: torch.Generator) -> Targets:
    """Annotation like that of the real sets: 1 to 13 boxes an image, masks of large areas, one label."""
    drawn = Targets(
        [torch.zeros(0, 4)] * batch,
        [torch.zeros(0, dtype=torch.int64)] * batch,
        torch.full((batch,), stage == "det"),
        torch.full((batch, size, size), VOID),
        torch.full((batch,), NO_CLASS),
    )
    count = len(model.classes[stage])
    if stage == "det":
        numbers = torch.randint(1, 14, (batch,), generator=generator).tolist()
        sides = [0.03 + 0.4 * torch.rand(n, 2, generator=generator) for n in numbers]
        drawn.boxes = [torch.cat([s / 2 + torch.rand(s.shape, generator=generator) * (1 - s), s], 1) for s in sides]
        drawn.labels = [torch.randint(count, (n,), generator=generator) for n in numbers]
    elif stage == "seg":
        areas = torch.randint(count, (batch, 1, 4, 4), generator=generator).float()
        drawn.masks = F.interpolate(areas, (size, size), mode="nearest")[:, 0].long()
    else:
        drawn.classes = torch.randint(count, (batch,), generator=generator)
    return drawn
