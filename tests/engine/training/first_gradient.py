"""Run by test_distributed.py: save the gradients of a stage's first step, and the batch-norm statistics after it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

from engine.settings.options import build_parser, to_config
from engine.train import start_model
from engine.training.run import Run
from engine.training.stage import StageLoop


def save_first_gradient(stage: str, out: str, arguments: list[str]) -> None:
    parser = build_parser("first_gradient", "")
    run = Run(to_config(parser, parser.parse_args(arguments)))
    run.track([], {})
    model, _ = start_model(run, stage, None)
    model = model.double()  # so that a ReLU at zero does not fall on different sides
    loop = StageLoop(run, stage, model, None)
    loop.optimizer.step = lambda: None
    loop.optimizer.zero_grad = lambda: None
    loop.progress = type("Bar", (), {"set_postfix": lambda *a, **k: None})()
    loop.wrapped.train()
    loop.step(next(iter(loop.loaders["plain"])), 0)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found.update((name, b.float()) for name, b in model.named_buffers() if "running" in name)
    if run.is_main:
        torch.save(found, out)


if __name__ == "__main__":
    save_first_gradient(sys.argv[1], sys.argv[2], sys.argv[3:])
