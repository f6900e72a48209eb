"""int8 copies of exported models: convolutions in 8 bits, by ONNX Runtime's own quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from data.images import IMAGE_SUFFIXES, read_image
from engine.evaluation.prediction import network_input
from engine.speed.onnx_model import import_package
from engine.storage.errors import UserError

PICTURES = 100
"""As many tell the range of each value."""
IN_FLOAT = 3
"""Convolutions at the image that stay float32: what they lose reaches every task, and they have the fewest filters."""


class Calibration:
    """Hands images one by one to the runtime, which notes the range of every value that it quantises."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self.images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """The next input, None after the last."""
        image = next(self.images, None)
        return None if image is None else {"images": image.numpy()}


def calibration_images(folder: Path, size: int, count: int = PICTURES) -> Iterator[Tensor]:
    """Up to `count` pictures (1, 3, S, S) in 0..1, evenly spread over the names in a folder and those below it.

    Raises UserError where there are none.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"--int8 {folder}: holds no pictures; name a folder of training images")
    step = max(1, len(files) // count)
    return (network_input(read_image(path), size) for path in files[::step][:count])


def quantised(proto: Any, images: Iterable[Tensor]) -> Any:
    """A copy of an ONNX graph whose convolutions but the first three compute in int8, with a scale for each filter.

    The head stays float32: it is a few per cent of the operations, and boxes need its digits. `images`: as those it
    will see.
    """
    onnx, quantization = import_package("onnx"), import_package("onnxruntime.quantization")
    in_float = [node.name for node in proto.graph.node if node.op_type == "Conv"][:IN_FLOAT]
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, before)
        quantization.quantize_static(
            *(before, after, Calibration(images)),
            per_channel=True,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=in_float,
        )
        return onnx.load(after)
