"""Exported models, read back and run by ONNX Runtime."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.types import Task
from engine.storage.checkpoint import read_threshold
from engine.storage.errors import UserError
from models.deploy import Final

FINAL, RAW = Final._fields[:5], Final._fields[5:]
"""Outputs that a user reads, and those that evaluation reads."""
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "seg": ("mask", "pred_masks"),
    "det": ("boxes", "scores", "labels", "pred_logits", "pred_boxes"),
    "cls": ("label", "pred_class"),
}
"""Outputs of each task."""
NOTHING = {"pred_logits": (1, 0), "pred_boxes": (1, 4), "pred_masks": (0, 1, 1), "pred_class": (0,)}
"""Shape, for one image, of the raw outputs of a network that has learnt no classes of a task."""
NEEDED = "pip install onnx onnxscript onnxruntime"


def is_onnx(path: str | Path) -> bool:
    """Whether a file's name says that it is an ONNX model."""
    return Path(path).suffix.lower() == ".onnx"


class OnnxModel(nn.Module):
    """An exported model with the face of `OneHead`, run by ONNX Runtime on the CPU.

    A task that was left out of the file is one that the model has learnt no classes of.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """Open a file; `threads` 0: as the runtime chooses. Raises UserError when it is missing, damaged or foreign."""
        super().__init__()
        if not Path(path).is_file():
            raise UserError(f"{path} is not there: give the path of a file written by engine.export")
        runtime = import_package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            about = json.loads(self.session.get_modelmeta().custom_metadata_map["onehead"])
            self.classes = {task: tuple(names) for task, names in about["classes"].items()}
            self.input_size = int(about["input_size"])
            self.threshold = read_threshold(about)
        except Exception as error:  # the runtime raises many types for a file that is not what it says
            first = " ".join(str(error).split())[:120]
            raise UserError(f"{path} is no OneHead model ({first}): give a file written by engine.export") from None
        self.outputs = {output.name for output in self.session.get_outputs()}

    def run(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The named outputs for images (B, 3, S, S) in 0..1. The runtime computes the others too."""
        found = self.session.run(list(names), {"images": images.contiguous().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The raw outputs, as `OneHead` gives them."""
        found = self.run(images, [name for name in RAW if name in self.outputs])
        return {name: found[name] if name in found else torch.zeros(len(images), *NOTHING[name]) for name in RAW}


def check_packages() -> None:
    """Raise UserError when a package that only export needs is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_package(name)


def import_package(name: str) -> Any:
    """A package that only export needs. Raises UserError when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"ONNX files need the package {name.split('.')[0]}: {NEEDED}") from None
