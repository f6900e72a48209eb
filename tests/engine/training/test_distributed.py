"""Two processes compute the gradient of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.training.distributed import Synchronised, synchronise
from models.backbones import BACKBONES
from models.onehead import ModelConfig, OneHead
from tests.models.builders import CLASSES

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("first_gradient.py")


def first_gradient(processes: int, stage: str, arguments: list[str], out: Path) -> dict[str, torch.Tensor]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), stage, str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize(
    ("stage", "backbone"), [("seg", "fast_scnn"), ("det", "fast_scnn"), ("seg", "mobilenetv3_small")]
)
def test_two_processes_give_the_gradient_of_one(stage: str, backbone: str, tiny: list[str], tmp_path: Path) -> None:
    # Denoising draws its noise in each process, so it is left out of the comparison.
    arguments = [
        *tiny,
        "--data.plain_end",
        "1",
        "--loss.denoise",
        "0",
        "--order",
        f"[{stage}]",
        "--model.backbone",
        backbone,
    ]
    one = first_gradient(1, stage, arguments, tmp_path / "one.pt")
    two = first_gradient(2, stage, [*arguments, "--name", "two"], tmp_path / "two.pt")
    assert one.keys() == two.keys()
    assert any(name.endswith("running_mean") for name in one)
    for name, gradient in one.items():
        # float32 loss terms leave 1e-7; a bias before a batch norm has no gradient but rounding.
        assert (gradient - two[name]).norm() <= 1e-3 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_no_norm_is_left_to_a_process_alone(backbone: str) -> None:
    model = OneHead(ModelConfig(backbone=backbone), CLASSES, 64)
    synchronise(model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, Synchronised) for norm in norms)


@pytest.mark.slow
def test_torchrun_trains_all_stages(tiny: list[str], tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "engine.train"]
    done = subprocess.run([sys.executable, *launcher, *tiny], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("minutes of training") == 1  # one process speaks
    assert (tmp_path / "runs" / "tiny" / "cls.pt").is_file()
