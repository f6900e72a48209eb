"""Running a public teacher in torch, or in OpenVINO, which is more than twice as fast on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from engine.storage.errors import UserError
from models.public_teacher import PublicTeacher, TeacherOutputs

Runtime = Literal["torch", "openvino"]
Teach = Callable[[Tensor, int], TeacherOutputs]
"""Views (B, 3, S, S) in 0..1 and the side at which the teacher sees them -> its outputs."""

LARGEST = 256
"""Largest side at which a teacher sees a view that is smaller."""


def public_teacher(name: str, file: str | None) -> tuple[PublicTeacher, str]:
    """A teacher with its public weights, and where they are from. Raises UserError."""
    try:
        teacher = PublicTeacher(name)
        return teacher, f"{name}, {teacher.load_imagenet(file)}"
    except ValueError as error:
        raise UserError(f"{error}; give a file of its weights as teacher_weights, or another teacher") from None


def teacher_side(side: int) -> int:
    """Side at which the teacher sees views of `side`: half as large again, up to a limit.

    It learnt at 224 px; on small views its outputs are poor.
    """
    return max(side, min(LARGEST, 3 * side // 2 // 32 * 32))


def query_teacher(teacher: PublicTeacher, runtime: Runtime, accelerator: Accelerator) -> Teach:
    """A function that returns the teacher's outputs. Raises UserError where OpenVINO is chosen and not installed."""
    if runtime == "openvino":
        return OpenVINOTeacher(teacher)

    def teach(views: Tensor, side: int) -> TeacherOutputs:
        with torch.no_grad(), accelerator.autocast():
            found: TeacherOutputs = teacher(enlarged(views, side).contiguous(memory_format=torch.channels_last))
        return found

    return teach


def enlarged(views: Tensor, side: int) -> Tensor:
    """Views resized to the side at which the teacher sees them."""
    return views if views.shape[-1] == side else F.interpolate(views, (side, side), mode="bilinear")


class OpenVINOTeacher:
    """A teacher compiled by OpenVINO for each shape of views."""

    def __init__(self, teacher: PublicTeacher) -> None:
        try:
            import openvino  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise UserError("pretrain.runtime openvino: it is not installed; `pip install openvino`") from None
        self.openvino: Any = openvino
        self.teacher, self.compiled = teacher.cpu(), dict[tuple[int, ...], Any]()

    def __call__(self, views: Tensor, side: int) -> TeacherOutputs:
        """The teacher's outputs for views."""
        images = enlarged(views, side).contiguous()
        shape = tuple(images.shape)
        if shape not in self.compiled:
            graph = self.openvino.convert_model(self.teacher, example_input=images, input=list(shape))
            threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
            self.compiled[shape] = self.openvino.compile_model(graph, "CPU", threads)
        found = self.compiled[shape](images.numpy())
        return TeacherOutputs(*(torch.from_numpy(found[i].copy()) for i in range(len(TeacherOutputs._fields))))
