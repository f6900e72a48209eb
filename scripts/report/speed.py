"""Tables of speed: records in results/ -> Markdown, as in scripts/report/tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.types import TASKS
from engine.experiments.tables import markdown
from engine.speed.reference_models import DEPLOYED, REFERENCE_MODELS
from scripts.report.tables import METRICS, PARTS, millions

Result = dict[str, Any]
RUNTIMES = {
    "exported": "",
    "openvino": ", OpenVINO",
    "exported_int8": ", int8",
    "openvino_int8": ", OpenVINO, int8",
}
"""How exported models are run; ONNX Runtime and float32 go without saying."""
SCORES = ("mIoU", "AP50", "mAP", "Top-1")
MEASURED = ("cpu_ms", "device_ms", "launches")
"""What a record of scripts/profile_step.py has of each part of a step."""


def speed(record: Path) -> str:
    """Size and speed of one benchmark, ours beside what a user would pick instead."""
    r = json.loads(record.with_suffix(".json").read_text())
    references = " + ".join(REFERENCE_MODELS.values())
    rows = [["what", f"{r['size']} x {r['size']}, {r['threads']} threads, {r['precision']}"]]
    rows.append(["parameters: backbone, neck, head, all", ", ".join(millions(r, p) for p in (*PARTS, ""))])
    rows.append(["GFLOPs a forward pass", f"{r['gflops']:.2f}"])
    rows.append(["image tensor to boxes, full-size mask, label: median (95 %)", milliseconds(r, "latency")])
    rows.append([references, together(r, "")])
    rows.append(["ratio", f"{r['latency_ratio']:.2f}"])
    rows += exported_rows(r, "", "exported to ONNX")
    if "deployed_size" in r:
        sides = ", ".join(map(str, DEPLOYED.values()))
        rows.append([f"deployed, at {r['deployed_size']} px: median (95 %)", milliseconds(r, "latency_deployed")])
        rows.append([f"{references} at {sides} px", together(r, "_deployed")])
        rows.append(["ratio", f"{r['latency_deployed_ratio']:.2f}"])
        rows += exported_rows(r, "_deployed", "deployed and exported to ONNX")
    steps = [f"{r[f'train_{stage}_ms_per_image_median']:.0f}" for stage in (*METRICS, "lraspp")]
    rows.append(["training step an image: seg, det, cls; LR-ASPP", f"{', '.join(steps[:3])}; {steps[3]} ms"])
    memory = f"{r['inference_peak_mib']:.0f}, {r['training_peak_mib']:.0f} MiB"
    rows += [["peak memory: inference, training of a batch", memory], ["commit", r["commit"]]]
    return "\n".join(markdown(rows))


def exported_rows(r: Result, kind: str, what: str) -> list[list[str]]:
    """Time and ratio of the exported model by runtime, of those that were measured."""
    found = [(name + kind, text) for name, text in RUNTIMES.items() if f"{name}{kind}_ratio" in r]
    return [
        [f"{what}{text}: median (95 %), ratio", f"{milliseconds(r, name)}, {r[f'{name}_ratio']:.2f}"]
        for name, text in found
    ]


def together(r: Result, kind: str) -> str:
    """Time of the reference networks one after the other."""
    return f"{sum(r[f'{name}{kind}_ms_median'] for name in REFERENCE_MODELS):.1f} ms"


def milliseconds(result: Result, what: str) -> str:
    """Median and 95th percentile."""
    return f"{result[f'{what}_ms_median']:.1f} ({result[f'{what}_ms_p95']:.1f}) ms"


def profiles(record: Path) -> str:
    """The table of a record of scripts/profile_step.py."""
    return profile_table(json.loads(record.with_suffix(".json").read_text()))


def profile_table(record: Result) -> str:
    """Milliseconds of a step by part and stage; on a GPU of the CPU and of kernels, with the number of launches."""
    stages = [stage for stage in TASKS if stage in record["stages"]]
    gpu = record["device"] == "cuda"
    unit = "CPU ms, GPU ms, launches" if gpu else "ms"
    where = f"{record['size']} px, {record['batch']} images, {record['dtype'].removeprefix('torch.')}"
    rows = [[f"{where}: {unit} a step", *stages]]
    found = [record["stages"][stage]["parts"] for stage in stages]
    for part in found[0]:
        rows.append([part, *(profile_cell(parts[part], gpu) for parts in found)])
    total = [{key: sum(row[key] for row in parts.values()) for key in MEASURED} for parts in found]
    rows.append(["all, under the profiler", *(profile_cell(row, gpu) for row in total)])
    rows.append(["a step without it", *(f"{record['stages'][stage]['step_ms']:.1f}" for stage in stages)])
    rows.append([f"{record['machine']}, {record['threads']} threads, {record['commit']}", *([""] * len(stages))])
    return "\n".join(markdown(rows))


def profile_cell(row: dict[str, float], gpu: bool) -> str:
    """A part's time, and on a GPU its kernels."""
    return f"{row['cpu_ms']:.1f}, {row['device_ms']:.1f}, {row['launches']:.0f}" if gpu else f"{row['cpu_ms']:.1f}"


def exports(record: Path) -> str:
    """The table of a record of scripts/score_exports.py."""
    return exports_table(json.loads(record.with_suffix(".json").read_text()))


def exports_table(record: Result) -> str:
    """Size and scores of a checkpoint and of its ONNX files."""
    rows = [[f"{record['size']} px, {record['commit']}", "MB", *SCORES]]
    for row in record["rows"]:
        rows.append([row["model"], f"{row['megabytes']:.1f}", *(f"{row[name]:.3f}" for name in SCORES)])
    return "\n".join(markdown(rows))
