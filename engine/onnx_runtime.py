"""Networks as ONNX and in ONNX Runtime: what exporting, reading back and the teacher of stage 0 share."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `export` installs."""


def has_packages() -> bool:
    """Whether all of them are installed."""
    return all(importlib.util.find_spec(name) for name in PACKAGES)


def package(name: str) -> Any:
    """One of them. Raises UserError when it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"ONNX files need the package {name}: pip install {' '.join(PACKAGES)}") from None


def to_onnx(model: nn.Module, images: Tensor, **options: Any) -> Any:
    """The graph of a model for such images; `options` are those of torch.onnx.export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (images,), dynamo=True, verbose=False, **options)
    assert program is not None
    return program.model_proto


def open_session(model: str | bytes, threads: int = 0) -> Any:
    """A session on the CPU for a file or its content; `threads` 0: as the runtime chooses."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
