"""Size and speed of the network against the assignment's limits: `python -m engine.benchmark`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from data.types import TASKS
from engine.speed import reference_models
from engine.speed.exported import exported
from engine.speed.onnx_model import check_packages
from engine.speed.reference_models import DEPLOYED, REFERENCE_MODELS
from engine.speed.timing import Figures, Run, inference, summary, take_turns, time_training
from engine.storage.checkpoint import load_model
from engine.storage.device import (
    DTYPES,
    Precision,
    cpu_name,
    keep_freed_memory,
    peak_memory,
    pick_device,
    pick_precision,
)
from engine.storage.errors import UserError, positive, run_cli
from models.backbones import BACKBONES
from models.onehead import ModelConfig, OneHead, count_parameters

OURS = {
    "latency": "one image, to the final outputs",
    "exported": "exported, ONNX Runtime, fp32",
    "openvino": "exported, OpenVINO, fp32",
    "exported_int8": "exported, ONNX Runtime, int8",
    "openvino_int8": "exported, OpenVINO, int8",
}
"""This network by name of a run."""
SIZES = ("", "_deployed")
"""Endings of the names of runs: all at one size, each at the size it is deployed at."""
MAX_PARAMETERS = 8_000_000
MAX_LATENCY_MS = 150.0
"""The assignment's limits: parameters of the whole model; time of one 512 x 512 image on a Colab T4."""
CLASSES: dict[str, int] = {"det": 10, "seg": 21, "cls": 10}
"""Classes of the assignment's sets, for a model without --weights."""
EXAMPLE = """example:
  python -m engine.benchmark --threads 2
  python -m engine.benchmark --weights runs/onehead/cls.pt --device cuda --batch 16
  python -m engine.benchmark --backbone efficientnet_b0 --alone

Inference takes one drawn image in 0..1 that is on the device already, to raw outputs, final boxes, the full-size class
mask and the label; decoding and resizing of the file are not in it. Give --weights: masks have few borders once a
network is trained, and only borders are interpolated. A training step is forward, loss, backward,
clipping and AdamW on drawn targets, without data loading and without remedies against forgetting.
What a user would pick instead is torchvision's LR-ASPP MobileNetV3-Large, SSDLite320 and MobileNetV3-Small, run one
after the other on the same image, at the same precision, to the same outputs; with --weights in the same run also at
the sizes that each is deployed at. The exported model is run by ONNX Runtime and, where it is installed, OpenVINO. All
take turns, round by round, each called twice and timed once; a ratio is the median over rounds.
The last line of stdout is one JSON object."""


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
    add("--backbone", choices=sorted(BACKBONES), help="of an untrained model, without --weights")
    add("--size", type=positive, default=512, metavar="S", help=f"side of the input, a multiple of 32 {default}")
    add("--batch", type=positive, default=8, metavar="N", help=f"images a training step {default}")
    add("--alone", action="store_true", help="leave out what a user would pick instead, and the exported model")
    add("--int8", type=Path, metavar="FOLDER", help="also export in int8, calibrated on these pictures")
    add = parser.add_argument_group("where").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=f"auto: CUDA if there is one {default}")
    choices = ("auto", *DTYPES)
    add("--precision", choices=choices, default="auto", help=f"auto: what the device is fast at {default}")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: as torch chooses)")
    add = parser.add_argument_group("how often").add_argument
    add("--runs", type=positive, default=20, metavar="N", help=f"timed runs of each kind {default}")
    add("--warmup", type=positive, default=5, metavar="N", help=f"runs of each kind before the timed ones {default}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print it; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.weights and args.backbone:
        raise UserError("--backbone and --weights: the file brings its own backbone; give one of the two")
    if not args.alone:
        check_packages()  # now, not after minutes of measuring
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, precision = choose(args.device, args.precision)
    model = make_model(args.weights, args.size, device, args.backbone or ModelConfig.backbone)
    figures: Figures = {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": str(torch.__version__),
        "size": args.size,
        "batch": args.batch,
        "backbone": model.config.backbone,
        "runs": args.runs,
        **parameters(model),
        "gflops": round(flops(model, args.size, device) / 1e9, 2),
    }
    dtype = DTYPES[precision]
    runs = {"latency": inference(model, args.size, dtype)}
    runs["latency"]()
    figures["inference_peak_mib"] = peak_memory(device)  # before there is anything else
    if not args.alone:
        deployed = load_model(args.weights, device) if args.weights else None
        runs |= beside(model, deployed, dtype, args.int8)
        figures |= {"deployed_size": deployed.input_size} if deployed else {}
    times = take_turns(runs, device, args.warmup, args.runs)
    for name, taken in times.items():
        figures |= summary(f"{name}_ms", taken)
    figures |= time_training(model, args.size, dtype, args.batch, args.warmup, args.runs)
    if not args.alone:
        figures |= reference_models.time_training(device, args.size, dtype, args.batch, args.warmup, args.runs)
        figures |= ratios(times, figures)
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


def make_model(weights: str | None, size: int, device: torch.device, backbone: str = ModelConfig.backbone) -> OneHead:
    """The model to measure, in eval mode on `device`; `backbone` is that of one without weights.

    Raises UserError when it cannot run at this size.
    """
    if size % 32:
        raise UserError(f"--size {size}: it must be a multiple of 32, such as 320 or 512")
    trained = load_model(weights) if weights else None
    config = trained.config if trained else ModelConfig(backbone)
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


def beside(model: OneHead, deployed: OneHead | None, dtype: torch.dtype | None, int8: Path | None) -> dict[str, Run]:
    """What is compared with a model: its exports and what a user would pick instead, all at its size.

    With a `deployed` model also that and its exports, and the others, each at the size it is deployed at.
    """
    device, exports = model.mean.device, exported(model, int8)
    runs = {**instead(device, dict.fromkeys(REFERENCE_MODELS, model.input_size), dtype), **exports}
    if deployed is None:
        return runs
    if deployed.input_size != model.input_size:
        exports = exported(deployed, int8)
    own = {"latency": inference(deployed, deployed.input_size, dtype), **exports}
    return runs | {f"{name}_deployed": run for name, run in {**own, **instead(device, DEPLOYED, dtype)}.items()}


def instead(device: torch.device, sides: Mapping[str, int], dtype: torch.dtype | None) -> dict[str, Run]:
    """What a user would pick instead, each on an image of its side."""
    return {name: reference_models.inference(name, device, side, dtype) for name, side in sides.items()}


def ratios(times: Mapping[str, Sequence[float]], figures: Figures) -> Figures:
    """Our times over those of what a user would pick instead: of each round, then the median."""
    found = {}
    for kind in SIZES:
        together = [sum(taken) for taken in zip(*(times.get(f"{name}{kind}", ()) for name in REFERENCE_MODELS))]
        for name in (f"{name}{kind}" for name in OURS if f"{name}{kind}" in times):
            found[f"{name}_ratio"] = round(median(ours / theirs for ours, theirs in zip(times[name], together)), 3)
    steps = [figures[f"train_{stage}_ms_per_image_median"] for stage in TASKS]
    return {**found, "train_ratio": round(max(steps) / figures["train_lraspp_ms_per_image_median"], 3)}


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
    if "latency_ratio" in f:
        lines += comparison(f)
    whose = "allocated on the GPU" if f["device"] == "cuda" else "of the whole process"
    lines.append(f"\n{'peak memory, MiB':<34}{'inference':>9}{'training':>9}")
    lines.append(f"{whose:<34}{f['inference_peak_mib']:>9.0f}{f['training_peak_mib']:>9.0f}\n")
    return "\n".join(lines)


def comparison(f: Figures) -> list[str]:
    """The lines on what a user would pick instead, and on exported models."""
    lines = [f"\n{'training LR-ASPP, per image':<34}{pair(f, 'train_lraspp_ms_per_image')}"]
    sides = ", ".join(map(str, DEPLOYED.values()))
    heads = ("instead, at the same size", f"as deployed: at {f.get('deployed_size')} px, they at {sides}")
    for kind, head in zip(SIZES, heads):
        if f"latency{kind}_ratio" in f:
            lines.append(f"\n{head:<52}{'ratio':>9}")
            lines += [f"{text:<34}{pair(f, f'{name}{kind}_ms')}" for name, text in REFERENCE_MODELS.items()]
            ours = {f"{name}{kind}": text for name, text in OURS.items() if f"{name}{kind}_ratio" in f}
            lines += [f"{text:<34}{pair(f, f'{name}_ms')}{f[f'{name}_ratio']:>9.2f}" for name, text in ours.items()]
    return [
        *lines,
        f"\nof the three together this network takes {f['latency_ratio']:.2f}, exported {f['exported_ratio']:.2f}; "
        f"its slowest training step {f['train_ratio']:.2f} of LR-ASPP's",
    ]


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


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    sys.exit(run_cli(main))
