"""Precision by what the device really has, and settings that make a CPU fast."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

from engine.storage.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: the GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def training_precision(asked: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The precision to train in. Raises UserError for one that the device cannot train in."""
    if asked == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU, a CPU has no loss scaling: choose bf16 or fp32, or leave it out")
    return pick_precision(device) if asked == "auto" else asked


def pick_precision(device: torch.device) -> Precision:
    """The fastest safe precision of a device.

    GPUs before Ampere (T4, V100) only emulate bfloat16, although `torch.cuda.is_bf16_supported()` says True: they get
    float16 with loss scaling. CPUs get bfloat16 where they have instructions for it.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and has_flag("avx512_bf16", "amx_bf16")
    except (AttributeError, RuntimeError):
        return False


def has_flag(*names: str) -> bool:
    """Whether the kernel lists any of the CPU features; False where it keeps no such list."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return any(f" {name}" in flags for name in names)


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers instead of returning them to the kernel after every operation.

    Without it each activation of a CPU training step is mapped and zeroed anew, a quarter of the step's time.
    """
    if sys.platform.startswith("linux"):
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        except (OSError, AttributeError):
            return


def peak_memory(device: torch.device) -> float:
    """Most memory used up to now in MiB: of the process on a CPU, allocated by torch on a GPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows has none
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kibibytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def cpu_name() -> str:
    """Model name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown CPU"
            )
    except OSError:
        return "unknown CPU"
