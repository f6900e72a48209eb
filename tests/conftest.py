"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.public_teacher import PublicTeacher

TEACHER = "mobilenetv3_small_050"
"""A small public network."""


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights, as timm publishes them, but drawn at random."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(PublicTeacher(TEACHER).body.state_dict(), path)
    return path
