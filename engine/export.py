"""ONNX files of a trained model, with post-processing inside, and how they are read back.

    python -m engine.export --weights weights/onehead.pt --out onehead.onnx     # --size 512 --opset 20 --half
    python -m engine.export --weights weights/onehead.pt --out boxes.onnx --tasks det --int8 data/mini_coco_det/train
    python eval.py --weights onehead.onnx --data_root data --tasks all

One input, `images`: float32 (B, 3, S, S) in 0..1. Outputs are those of `models.deploy.Final`, classes as indices
into the lists of the file's metadata.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.types import TASKS, Task
from engine.speed.int8 import calibration_images, quantised
from engine.speed.onnx_model import FINAL, OUTPUTS, RAW, OnnxModel, check_packages, import_package, is_onnx
from engine.storage.checkpoint import load_model
from engine.storage.errors import UserError, run_cli
from engine.storage.files import write_bytes
from models.deploy import Deployed
from models.onehead import OneHead

OPSET = 18


def export(
    model: OneHead,
    path: Path,
    opset: int = OPSET,
    half: bool = False,
    tasks: Sequence[Task] = TASKS,
    calibration: Iterable[Tensor] | None = None,
) -> None:
    """Write a model as ONNX with the outputs of `tasks`; inputs and outputs stay float32.

    half: compute in float16; calibration: compute all convolutions but the first three in int8, in the ranges that
    these images (1, 3, S, S) have. Raises UserError when the file cannot be written or the packages are missing.
    """
    check_packages()
    proto = with_outputs(traced(model, opset), tasks)
    with quiet():
        if half:
            proto = import_package("onnxruntime.transformers.float16").convert_float_to_float16(
                proto, keep_io_types=True
            )
        if calibration is not None:
            proto = quantised(proto, calibration)
    classes = {task: names if task in tasks else () for task, names in model.classes.items()}
    about = {"classes": classes, "input_size": model.input_size, "threshold": model.threshold}
    import_package("onnx.helper").set_model_props(proto, {"onehead": json.dumps(about)})
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


def with_outputs(proto: Any, tasks: Sequence[Task]) -> Any:
    """The part of a graph that the outputs of some tasks need. A runtime computes all of a graph, whatever is read."""
    names = [name for name in (*FINAL, *RAW) if any(name in OUTPUTS[task] for task in tasks)]
    return import_package("onnx.utils").Extractor(proto).extract_model(["images"], names)


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
    """Largest difference between torch and the exported file for every raw output it has, in its own unit."""
    with torch.no_grad():
        ours: dict[str, Any] = model(images)
    theirs = exported(images)
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in RAW if name in exported.outputs}


def main(argv: Sequence[str] | None = None) -> int:
    """Export, read back, compare on a drawn image."""
    parser = argparse.ArgumentParser(description="Write a model as ONNX, with post-processing inside.")
    parser.add_argument("--weights", required=True, help="checkpoint of the model")
    parser.add_argument("--out", type=Path, help="file to write, NAME.onnx (default: beside the checkpoint)")
    parser.add_argument(
        "--size", type=int, help="side of the square input, a multiple of 32 (default: the checkpoint's)"
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="version of ONNX's operators (default: %(default)s)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=TASKS,
        metavar="TASK",
        help="outputs to keep, any of seg, det, cls; what only the others need is left out (default: all)",
    )
    smaller = parser.add_mutually_exclusive_group()
    smaller.add_argument("--half", action="store_true", help="compute in float16: half the file, for GPUs")
    smaller.add_argument(
        "--int8",
        type=Path,
        metavar="FOLDER",
        help="all convolutions but the first three in int8, for CPUs; FOLDER: pictures to calibrate on",
    )
    args = parser.parse_args(argv)
    check_packages()
    path = args.out or Path(args.weights).with_suffix(".onnx")
    check_options(path, Path(args.weights), args.opset)
    model = resized(load_model(args.weights), args.size)
    size = model.input_size
    calibration = calibration_images(args.int8, size) if args.int8 else None
    export(model, path, args.opset, args.half, args.tasks, calibration)
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
    newest = import_package("onnx.defs").onnx_opset_version()
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


if __name__ == "__main__":
    sys.exit(run_cli(main))
