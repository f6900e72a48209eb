"""The exported model on one image, by the runtimes that a user of a CPU would take."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from engine.speed.onnx_model import FINAL, OnnxModel
from engine.speed.subprocess_function import SubprocessFunction
from engine.speed.timing import Run, drawn_image
from engine.storage.checkpoint import model_content, save
from models.onehead import OneHead

ROOT = Path(__file__).parents[2]


def exported(model: OneHead, int8: Path | None) -> dict[str, Run]:
    """The exported model by runtime: "exported", of ONNX Runtime, and, where it is installed, "openvino".

    float32 on the CPU with as many threads as torch has; with a folder of pictures to calibrate on also "exported_int8"
    and "openvino_int8". Exported and run by processes of their own, as a user would: what torch leaves behind in memory
    slows both.
    """
    options = {"": [], "_int8": ["--int8", str(int8.resolve())]} if int8 else {"": list[str]()}
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.pt"
        save(weights, model_content(model))
        for kind, given in options.items():
            path = weights.with_name(f"model{kind}.onnx")
            command = [sys.executable, "-m", "engine.export", "--weights", str(weights), "--out", str(path), *given]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            threads = torch.get_num_threads()
            runs[f"exported{kind}"] = SubprocessFunction(run_onnxruntime, path, model.input_size, threads)
            if find_spec("openvino"):
                runs[f"openvino{kind}"] = SubprocessFunction(run_openvino, path, model.input_size, threads)
    return runs


def run_onnxruntime(path: Path, size: int, threads: int) -> Run:
    """A function that runs an exported model on one image."""
    network, image = OnnxModel(path, threads), drawn_image(size)
    return lambda: network.run(image, FINAL)


def run_openvino(path: Path, size: int, threads: int) -> Run:
    """The same, compiled by OpenVINO for batches of one."""
    openvino = importlib.import_module("openvino")
    core, image = openvino.Core(), drawn_image(size).numpy()
    graph = core.read_model(path)
    graph.reshape({"images": list(image.shape)})
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(graph, "CPU", settings)
    return lambda: compiled({"images": image})
