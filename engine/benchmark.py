"""Size and speed of the network against the assignment's limits: `python -m engine.benchmark`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from data.types import TASKS, Task
from engine.checkpoint import load_model
from engine.config import OptimConfig
from engine.device import (
    DTYPES,
    Precision,
    cpu_name,
    keep_freed_memory,
    peak_memory,
    pick_device,
    pick_precision,
)
from engine.errors import UserError, run_cli
from engine.metrics import predicted_mask
from engine.stage import freeze_statistics, parameter_groups
from models.criterion import Criterion, LossConfig
from models.denoising import denoising_boxes
from models.deploy import fused
from models.onehead import ModelConfig, OneHead, count_parameters
from models.postprocess import detections
from models.targets import NO_CLASS, VOID, Targets

MAX_PARAMETERS = 8_000_000
MAX_LATENCY_MS = 150.0
"""The assignment's limits: parameters of the whole model; time of one 512 x 512 image on a Colab T4."""
CLASSES: dict[str, int] = {"det": 10, "seg": 21, "cls": 10}
"""Classes of the assignment's sets, for a model without --weights."""
EXAMPLE = """example:
  python -m engine.benchmark --threads 2
  python -m engine.benchmark --weights runs/onehead/cls.pt --device cuda --batch 16

Inference takes one image in 0..1 that is on the device already, to raw outputs, final boxes, the full-size class
mask and the label; decoding and resizing of the file are not in it. A training step is forward, loss, backward,
clipping and AdamW on drawn targets, without data loading and without remedies against forgetting.
The last line of stdout is one JSON object."""

Figures = dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command line."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark",
        description="Measure parameters, FLOPs, latency, training speed and memory.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "(default: %(default)s)"
    add = parser.add_argument_group("what to measure").add_argument
    add("--weights", metavar="FILE", help="checkpoint of the model (default: the default model, untrained)")
    add("--size", type=_positive, default=512, metavar="S", help=f"side of the input, a multiple of 32 {default}")
    add("--batch", type=_positive, default=8, metavar="N", help=f"images a training step {default}")
    add = parser.add_argument_group("where").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=f"auto: CUDA if there is one {default}")
    choices = ("auto", *DTYPES)
    add("--precision", choices=choices, default="auto", help=f"auto: what the device is fast at {default}")
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: as torch chooses)")
    add = parser.add_argument_group("how often").add_argument
    add("--runs", type=_positive, default=20, metavar="N", help=f"timed runs of each kind {default}")
    add("--warmup", type=_positive, default=5, metavar="N", help=f"runs of each kind before the timed ones {default}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it; returns the exit code."""
    args = build_parser().parse_args(argv)
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, precision = choose(args.device, args.precision)
    model = make_model(args.weights, args.size, device)
    figures: Figures = {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": str(torch.__version__),
        "size": args.size,
        "batch": args.batch,
        "runs": args.runs,
        **parameters(model),
        "gflops": round(flops(model, args.size, device) / 1e9, 2),
    }
    dtype = DTYPES[precision]
    figures |= time_inference(fused(model), args.size, dtype, args.warmup, args.runs)
    figures |= time_training(model, args.size, dtype, args.batch, args.warmup, args.runs)
    figures["parameters_passed"] = figures["parameters"] < MAX_PARAMETERS
    figures["latency_passed"] = figures["latency_ms_median"] <= MAX_LATENCY_MS
    print(report(figures))
    print(json.dumps(figures, allow_nan=False))
    return 0


def choose(device_name: str, precision_name: str) -> tuple[torch.device, Precision]:
    """Return device and precision. Raises UserError for what this machine does not have."""
    if device_name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; use --device auto or cpu")
    device = pick_device(device_name)
    precision = pick_precision(device) if precision_name == "auto" else precision_name
    return device, precision  # type: ignore[return-value]


def make_model(weights: str | None, size: int, device: torch.device) -> OneHead:
    """The model to measure, in eval mode on `device`. Raises UserError when it cannot run at this size."""
    if size % 32:
        raise UserError(f"--size {size}: it must be a multiple of 32, such as 320 or 512")
    trained = load_model(weights) if weights else None
    config = trained.config if trained else ModelConfig()
    drawn = {task: tuple(f"{task} {i}" for i in range(count)) for task, count in CLASSES.items()}
    torch.manual_seed(0)
    try:
        model = OneHead(config, trained.classes if trained else drawn, size)
    except ValueError as error:
        raise UserError(f"--size {size}: {error}") from None
    if trained:
        model.load_state_dict(trained.state_dict())
    return model.to(device).to(memory_format=torch.channels_last).eval()


def parameters(model: OneHead) -> Figures:
    """Number of parameters by part."""
    parts = {f"parameters_{name}": count_parameters(part) for name, part in model.named_children()}
    return {"parameters": count_parameters(model), **parts}


def flops(model: OneHead, size: int, device: torch.device) -> int:
    """Operations of convolutions and matrix products in one forward pass of one image; a multiply-add is two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, size, size, device=device))
    return int(counter.get_total_flops())


def measure(name: str, run: Callable[[], object], device: torch.device, warmup: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls after `warmup` calls that are not counted."""
    times = []
    for i in tqdm(range(warmup + runs), desc=name, unit="run", leave=False, disable=None):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        if i >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return times


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(name: str, times: Sequence[float]) -> Figures:
    """Median and 95th percentile of `times` under `name`."""
    median, p95 = np.percentile(times, [50, 95])
    return {f"{name}_median": round(float(median), 3), f"{name}_p95": round(float(p95), 3)}


def time_inference(model: OneHead, size: int, dtype: torch.dtype | None, warmup: int, runs: int) -> Figures:
    """Latency of one image, from the input tensor to everything a user reads."""
    device = model.mean.device
    image = torch.rand(1, 3, size, size, device=device).to(memory_format=torch.channels_last)
    times = measure("inference", lambda: infer(model, image, dtype), device, warmup, runs)
    return {**summary("latency_ms", times), "inference_peak_mib": peak_memory(device)}


@torch.no_grad()
def infer(model: OneHead, images: Tensor, dtype: torch.dtype | None) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """Final boxes, class masks int64 (B, S, S) and labels int64 (B,) of images (B, 3, S, S) in 0..1."""
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        outputs = model(images)
    masks = [predicted_mask(logits, (images.shape[-2], images.shape[-1])) for logits in outputs["pred_masks"]]
    return detections(outputs), torch.stack(masks), outputs["pred_class"].argmax(1)


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
    if stage != TASKS[0]:
        freeze_statistics(model)

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


def report(figures: Figures) -> str:
    """Lay out all figures as a table."""
    f = figures
    lines = [
        f"{f['device_name']}, {f['threads']} CPU threads, {f['precision']}, torch {f['torch']}, "
        f"{f['size']} x {f['size']} pixels",
        "",
        f"{'parameters, M':<34}{f['parameters'] / 1e6:>9.2f}   {limit(f, 'parameters')}",
    ]
    for name in ("backbone", "neck", "head"):
        lines.append(f"  {name:<32}{f[f'parameters_{name}'] / 1e6:>9.2f}")
    lines.append(f"{'forward pass, GFLOPs':<34}{f['gflops']:>9.2f}   convolutions and matrix products")
    lines.append(f"\n{'milliseconds':<34}{'median':>9}{'95 %':>9}")
    lines.append(f"{'one image, to the final outputs':<34}{pair(f, 'latency_ms')}   {limit(f, 'latency')}")
    for stage in TASKS:
        name = f"training {stage}, per image ({f['batch']} a step)"
        lines.append(f"{name:<34}{pair(f, f'train_{stage}_ms_per_image')}")
    whose = "allocated on the GPU" if f["device"] == "cuda" else "of the whole process"
    lines.append(f"\n{'peak memory, MiB':<34}{'inference':>9}{'training':>9}")
    lines.append(f"{whose:<34}{f['inference_peak_mib']:>9.0f}{f['training_peak_mib']:>9.0f}\n")
    return "\n".join(lines)


def pair(figures: Figures, name: str) -> str:
    """Median and 95th percentile, aligned."""
    return f"{figures[f'{name}_median']:>9.1f}{figures[f'{name}_p95']:>9.1f}"


def limit(figures: Figures, name: str) -> str:
    """The assignment's limit with its verdict, in words."""
    verdict = "pass" if figures[f"{name}_passed"] else "FAIL"
    if name == "parameters":
        return f"{verdict}: limit below {MAX_PARAMETERS / 1e6:.0f} M"
    if figures["device"] == "cpu":
        within = "within" if figures["latency_passed"] else "above"
        return f"for information: {within} the {MAX_LATENCY_MS:.0f} ms that a T4 may take"
    return f"{verdict}: limit {MAX_LATENCY_MS:.0f} ms on a T4"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    sys.exit(run_cli(main))
