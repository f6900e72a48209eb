"""Where the time of a training step goes, stage by stage.

python -m scripts.profile_step --config configs/default.yaml --data.root data --json results/profile-cpu.json

Each stage passes three times over its images: the first pass decodes them, some steps of the second are timed, as many
of the third are recorded by torch.profiler. A part's time is that of the main thread less that of parts within it; on
a GPU also that of the kernels it launched, and their number. "waiting" is for the GPU, and for batches that workers
make; `--data.workers 0` lets the main thread make them.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from continual import Step
from continual.compose import Compose
from continual.expert import Expert
from continual.replay import Replay
from continual.replay_sets import ReplaySets
from data.dataset import TaskDataset
from engine.settings.config import Config
from engine.settings.options import build_parser, to_config
from engine.speed.timing import synchronise
from engine.storage.checkpoint import provenance
from engine.storage.device import cpu_name, keep_freed_memory
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_text
from engine.train import train
from engine.training import batches, run
from engine.training.batches import Batch
from engine.training.stage import StageLoop
from models import criterion
from models.onehead import OneHead
from models.pretrained_backbone import PretrainedBackbone
from scripts.report.speed import profile_table

MARK = "part: "
WAITING, OTHER, TEACHERS = "waiting", "other", "teachers"
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""Calls in which the CPU waits for the GPU."""
PARTS: tuple[tuple[Any, str, str], ...] = (
    (TaskDataset, "_picture", "loading"),
    (batches, "collate", "loading"),
    (TaskDataset, "__getitem__", "augmentation"),
    (run, "varied", "augmentation"),
    (Replay, "before_step", "replay"),
    (ReplaySets, "before_step", "replay"),
    (Compose, "before_step", "replay"),
    (Step, "query_teacher", TEACHERS),
    (Expert, "before_step", TEACHERS),
    (PretrainedBackbone, "maps", TEACHERS),
    (OneHead, "forward", "forward"),
    (criterion, "match_one_to_one", "matching"),
    (criterion, "match_one_to_many", "matching"),
    (StageLoop, "losses", "losses"),
    (Accelerator, "backward", "backward"),
    (Accelerator, "clip_grad_norm_", "optimiser"),
    (AcceleratedOptimizer, "step", "optimiser"),
    (AcceleratedOptimizer, "zero_grad", "optimiser"),
    (ModelEmaV3, "update", "optimiser"),
    (StageLoop, "step", OTHER),
)
"""Functions, by owner and name, and the part of a step that they are; of nested ones the innermost counts."""
NAMES = ("loading", "augmentation", "replay", TEACHERS, "forward", "losses", "matching", "backward", "optimiser")
WARMUP = 2
"""Steps of a pass before those that count."""
TIMED, PROFILED = 1, 2
"""Passes, from 0 on."""


class Span(NamedTuple):
    """A stretch of time of the main thread, microseconds, and the part of a step it belongs to."""

    start: float
    end: float
    part: str


def main(argv: Sequence[str] | None = None) -> int:
    """Train all stages for three passes each and print where a step's time goes."""
    parser = build_parser("python -m scripts.profile_step", __doc__ or "")
    parser.add_argument("--steps", type=int, default=8, help="steps of each stage that count")
    parser.add_argument("--json", help="where the record goes")
    parsed = parser.parse_args(argv)
    keep_freed_memory()
    words = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory() as folder:
        config = three_passes(to_config(parser, parsed), folder)
        found = Recorder(parsed.steps)
        with instrumented(found):
            train(config)
    record = {
        "command": " ".join(["python -m scripts.profile_step", *words]),
        "backbone": config.model.backbone,
        "size": config.data.size,
        "batch": config.optim.batch,
        "threads": torch.get_num_threads(),
        **found.about,
        "stages": found.stages,
        **provenance(),
    }
    print("\n" + profile_table(record))
    if parsed.json:
        write_text(Path(parsed.json), json.dumps(record, indent=1) + "\n")
    return 0


def three_passes(config: Config, folder: str) -> Config:
    """A configuration with three passes a stage over augmented images, its run in `folder`."""
    optim = replace(config.optim, epochs=replace(config.optim.epochs, seg=3, det=3, cls=3))
    track = replace(config.track, evals=1)
    return replace(
        config, runs=folder, name="profile", optim=optim, track=track, data=replace(config.data, plain_end=0.0)
    )


class Recorder:
    """Times some steps of the second pass of each stage, and profiles as many of the third."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.stages: dict[str, dict[str, Any]] = {}
        self.about: dict[str, Any] = {}

    def watched(self, loop: StageLoop, loader: Iterable[Batch], length: int) -> Iterator[Batch]:
        """The batches of a pass, timed or profiled from one before the first step that counts to after the last.

        Raises UserError for a pass that has no such step.
        """
        last = min(length, WARMUP + self.steps)
        if last <= WARMUP:
            raise UserError(f"a pass has {length} steps, and the first {WARMUP} do not count: lower --optim.batch")
        device = loop.run.device
        iterator, stop = iter(loader), ExitStack()
        for i in itertools.count():
            if i == WARMUP and loop.epoch in (TIMED, PROFILED):
                watch = self.timed if loop.epoch == TIMED else self.profiled
                stop.enter_context(watch(loop, device, last - WARMUP))
            if i == last:
                stop.close()
            with record_function(MARK + WAITING):
                batch = next(iterator, None)
            if batch is None:
                stop.close()
                return
            yield batch

    @contextmanager
    def timed(self, loop: StageLoop, device: torch.device, steps: int) -> Iterator[None]:
        """Note the mean time of a step without the profiler, and where it was taken."""
        synchronise(device)
        start = time.perf_counter()
        yield
        synchronise(device)
        self.stages[loop.name] = {"step_ms": round(1000 * (time.perf_counter() - start) / steps, 2)}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
        self.about = {"device": device.type, "machine": name, "dtype": str(loop.run.dtype or torch.float32)}

    @contextmanager
    def profiled(self, loop: StageLoop, device: torch.device, steps: int) -> Iterator[None]:
        """Note the parts of a step."""
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=kinds) as profiler:
            yield
            synchronise(device)
        self.stages[loop.name]["parts"] = parts(profiler.events(), steps)


@contextmanager
def instrumented(recorder: Recorder) -> Iterator[None]:
    """Let the functions of `PARTS` mark their time, and `recorder` see every batch."""
    bar = StageLoop.bar

    def watched(self: StageLoop, loader: Any) -> Iterable[Batch]:
        return recorder.watched(self, bar(self, loader), len(loader))

    with ExitStack() as stack:
        inside: list[str] = []  # parts that are running, outermost first
        for owner, name, part in PARTS:
            stack.enter_context(patch.object(owner, name, marked(getattr(owner, name), part, inside)))
        stack.enter_context(patch.object(StageLoop, "bar", watched))
        yield


def marked(function: Callable[..., Any], part: str, inside: list[str]) -> Callable[..., Any]:
    """The function, marked as a part of a step; what teachers compute is all theirs."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if TEACHERS in inside:
            return function(*args, **kwargs)
        inside.append(part)
        try:
            with record_function(MARK + part):
                return function(*args, **kwargs)
        finally:
            inside.pop()

    return call


def parts(events: Any, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the CPU and the GPU, and launches, by part and step."""
    on_cpu = [e for e in events if e.device_type == DeviceType.CPU]
    marks = [e for e in on_cpu if e.name.startswith(MARK)]
    line = timeline([Span(e.time_range.start, e.time_range.end, e.name.removeprefix(MARK)) for e in marks])
    found = {name: {"cpu_ms": 0.0, "device_ms": 0.0, "launches": 0.0} for name in (*NAMES, WAITING, OTHER)}
    for start, end, part in line:
        found[part]["cpu_ms"] += end - start
    starts = [span.start for span in line]
    for event in on_cpu:
        at = bisect_right(starts, event.time_range.start) - 1
        part = line[at].part if at >= 0 and event.time_range.start < line[at].end else OTHER
        found[part]["device_ms"] += sum(kernel.duration for kernel in event.kernels)
        found[part]["launches"] += len(event.kernels)
        if event.name in SYNCHRONISING:
            elapsed = event.time_range.elapsed_us()
            found[part]["cpu_ms"] -= elapsed
            found[WAITING]["cpu_ms"] += elapsed
    units = {"cpu_ms": 1000 * steps, "device_ms": 1000 * steps, "launches": steps}
    return {part: {k: round(v / units[k], 2) for k, v in row.items()} for part, row in found.items()}


def timeline(spans: Sequence[Span]) -> list[Span]:
    """Stretches side by side, each of the innermost of the nested spans that cover it; gaps are left out."""
    long = [s for s in spans if s.end > s.start]
    edges = [(s.start, 1, -s.end, s.part) for s in long] + [(s.end, 0, -s.start, s.part) for s in long]
    line: list[Span] = []
    covering: list[str] = []
    before = 0.0
    for at, opens, _, part in sorted(edges):
        if covering and at > before:
            line.append(Span(before, at, covering[-1]))
        if opens:
            covering.append(part)
        else:
            covering.pop()
        before = at
    return line


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    sys.exit(run_cli(main))
