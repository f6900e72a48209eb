"""ONNX files of a trained model, with post-processing inside, and how they are read back.

    python -m engine.export --weights weights/onehead.pt --out onehead.onnx     # --size 512 --opset 20 --half
    python eval.py --weights onehead.onnx --data_root data --tasks all

One input, `images`: float32 (B, 3, S, S) in 0..1. Outputs are those of `models.deploy.Final`, classes as indices
into the lists of the file's metadata.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.storage.checkpoint import load_model, read_threshold
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_bytes
from models.deploy import Deployed, Final
from models.onehead import OneHead

FINAL, RAW = Final._fields[:5], Final._fields[5:]
"""Outputs that a user reads, and those that evaluation reads."""
OPSET = 18
NEEDED = "pip install onnx onnxscript onnxruntime"


def is_onnx(path: str | Path) -> bool:
    """Whether a file's name says that it is an ONNX model."""
    return Path(path).suffix.lower() == ".onnx"


class OnnxModel(nn.Module):
    """An exported model with the face of `OneHead`, run by ONNX Runtime on the CPU."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        """Open a file; `threads` 0: as the runtime chooses. Raises UserError when it is missing, damaged or foreign."""
        super().__init__()
        if not Path(path).is_file():
            raise UserError(f"{path} is not there: give the path of a file written by engine.export")
        runtime = _import("onnxruntime")
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

    def run(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The named outputs for images (B, 3, S, S) in 0..1; nothing that only others need is computed."""
        found = self.session.run(list(names), {"images": images.contiguous().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The raw outputs, as `OneHead` gives them."""
        return self.run(images, RAW)


def export(model: OneHead, path: Path, opset: int = OPSET, half: bool = False) -> None:
    """Write a model as ONNX, computed in float16 if `half`; inputs and outputs stay float32.

    Raises UserError when the file cannot be written or the packages are missing.
    """
    check_packages()
    proto = traced(model, opset)
    if half:
        with quiet():
            proto = _import("onnxruntime.transformers.float16").convert_float_to_float16(proto, keep_io_types=True)
    about = {"classes": model.classes, "input_size": model.input_size, "threshold": model.threshold}
    _import("onnx.helper").set_model_props(proto, {"onehead": json.dumps(about)})
    try:
        write_bytes(path, proto.SerializeToString())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name a file in a folder that can be written") from None


def traced(model: OneHead, opset: int) -> Any:
    """The ONNX graph of a model for batches of any size. Raises UserError for an opset that cannot be made."""
    images = torch.rand(2, 3, model.input_size, model.input_size)
    with quiet():
        program = torch.onnx.export(
            Deployed(model.cpu().float()).eval(),
            (images,),
            input_names=["images"],
            output_names=[*FINAL, *RAW],
            opset_version=opset,
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=1024)}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    made = next(entry.version for entry in proto.opset_import if not entry.domain)
    if made != opset:
        raise UserError(f"--opset {opset}: this torch writes {made} of it; give {made}, or leave it out")
    return proto


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the exporter tells its own developers; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def largest_difference(model: OneHead, exported: OnnxModel, images: Tensor) -> dict[str, float]:
    """Largest difference between torch and the exported file for every raw output, in its own unit."""
    with torch.no_grad():
        ours: dict[str, Any] = model(images)
    theirs = exported(images)
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in RAW}


def main(argv: Sequence[str] | None = None) -> int:
    """Export, read back, compare on a drawn image."""
    parser = argparse.ArgumentParser(description="Write a model as ONNX, with post-processing inside.")
    parser.add_argument("--weights", required=True, help="checkpoint of the model")
    parser.add_argument("--out", type=Path, help="file to write, NAME.onnx (default: beside the checkpoint)")
    parser.add_argument(
        "--size", type=int, help="side of the square input, a multiple of 32 (default: the checkpoint's)"
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="version of ONNX's operators (default: %(default)s)")
    parser.add_argument("--half", action="store_true", help="compute in float16: half the file, for GPUs")
    args = parser.parse_args(argv)
    check_packages()
    path = args.out or Path(args.weights).with_suffix(".onnx")
    check_options(path, Path(args.weights), args.opset)
    model = resized(load_model(args.weights), args.size)
    export(model, path, args.opset, args.half)
    size = model.input_size
    off = largest_difference(model, OnnxModel(path), torch.rand(2, 3, size, size, generator=torch.manual_seed(0)))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, input {size} x {size}")
    print("largest difference to torch: " + ", ".join(f"{name} {value:.1e}" for name, value in off.items()))
    return 0


def check_options(path: Path, weights: Path, opset: int) -> None:
    """Refuse to write over the checkpoint or under a name that is not known again, and an opset that is none."""
    if path.resolve() == weights.resolve():
        raise UserError(f"--out {path}: is the file of --weights; name another")
    if not is_onnx(path):
        raise UserError(f"--out {path}: give a name that ends in .onnx, by which eval.py and predict know it again")
    newest = _import("onnx.defs").onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise UserError(f"--opset {opset}: the installed onnx and torch write {OPSET} to {newest}")


def resized(model: OneHead, size: int | None) -> OneHead:
    """The model for another input size, in place. Raises UserError for one that it cannot take."""
    if size is not None:
        try:
            if size < 32 or size % 32:
                raise ValueError(f"{size} is no multiple of 32")
            OneHead(model.config, model.classes, size)  # knows what a network needs
        except ValueError as error:
            raise UserError(f"--size {size}: {error}") from None
        model.input_size = size
    return model


def check_packages() -> None:
    """Raise UserError when a package that only export needs is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _import(name)


def _import(name: str) -> Any:
    """A package that only export needs. Raises UserError when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"ONNX files need the package {name.split('.')[0]}: {NEEDED}") from None


if __name__ == "__main__":
    sys.exit(run_cli(main))
