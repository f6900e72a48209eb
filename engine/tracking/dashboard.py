"""A run on Weights & Biases: forgetting curves over all stages, losses, per-class values, predictions, drops.

wandb is imported only here and only when it is asked for; nothing else depends on it. Without an account, `offline`
keeps everything in the run's `wandb/` folder for a later `wandb sync`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.evaluation.evaluate import Evaluation, Evaluator
from engine.evaluation.metrics import HEADLINE, predicted_mask
from engine.settings.config import TrackConfig
from engine.storage.errors import first_line
from engine.storage.files import write_text
from models.boxes import to_xyxy
from models.onehead import OneHead
from models.postprocess import detections

REMEDIES = ("replay_", "lwf_", "distill_", "expert_", "hold", "recall", "ewc", "l2sp")
"""How the names of remedies' loss terms begin."""


class Dashboard:
    """One Weights & Biases run for one chain of stages, resumed under its own id; x is the step of the whole chain."""

    def __init__(self, folder: Path, config: TrackConfig, run_config: Mapping[str, Any]) -> None:
        import wandb

        self.wandb: Any = wandb
        self.faults = (wandb.Error, OSError)
        """What its calls raise when its service or the network is gone."""
        begin = partial(
            wandb.init,
            project=config.project,
            group=config.group or None,
            name=folder.name,
            id=run_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(run_config),
        )
        try:
            self.run: Any = begin(mode=config.wandb)
        except self.faults as error:
            if config.wandb == "offline":
                raise
            print(f"note: Weights & Biases cannot be reached ({first_line(error)}); the run is logged offline there")
            wandb.teardown()  # or its service would still hold the id
            self.run = begin(mode="offline")
        self.run.define_metric("global_step")
        self.run.define_metric("*", step_metric="global_step")

    def log(self, row: Mapping[str, Any], order: list[str]) -> None:
        """Log one epoch; one that was logged before a crash already is not logged again."""
        self.run.log(panels(row, order), step=row["global_step"])

    def stage_end(self, row: Mapping[str, Any], evaluation: Evaluation, evaluator: Evaluator, model: OneHead) -> None:
        """Log every class's values and predictions on the first images of every set."""
        found: dict[str, Any] = {"predictions": list(self.pictures(evaluator, model))}
        for task, tally in evaluation.per_image.items():
            values = tally.per_class()
            columns = list(next(iter(values.values()), {}))
            rows = [[row["stage"], name, *(scores[c] for c in columns)] for name, scores in values.items()]
            found[f"per_class/{task}"] = self.wandb.Table(columns=["after stage", "class", *columns], data=rows)
        self.run.log({**found, "global_step": row["global_step"]})

    @torch.no_grad()
    def pictures(self, evaluator: Evaluator, model: OneHead) -> Iterator[Any]:
        """Images of every set with boxes, mask and label as predicted."""
        was, _ = model.training, model.eval()
        boxes_of, classes_of = dict(enumerate(model.classes["det"])), dict(enumerate(model.classes["seg"]))
        for task, image in evaluator.first_images(2):
            outputs = model(image[None].to(model.mean.device))
            labels = model.classes["cls"]
            label = f": {labels[int(outputs['pred_class'][0].argmax())]}" if labels else ""
            boxes = box_data(outputs, boxes_of, model.threshold)
            mask = predicted_mask(outputs["pred_masks"][0].cpu(), (image.shape[-2], image.shape[-1]))
            yield self.wandb.Image(
                image,
                caption=f"{task}{label}",
                boxes={"predictions": {"box_data": boxes, "class_labels": boxes_of}},
                masks={"predictions": {"mask_data": mask.numpy(), "class_labels": classes_of}},
            )
        model.train(was)

    def finish(self, drops: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the drop table and close the run."""
        columns = ["metric", "after_own_stage", "final", "drop_points", "drop_relative", "passed"]
        if drops:
            rows = [[d[c] for c in columns] for d in drops.values()]
            self.run.log({"drops": self.wandb.Table(columns=columns, data=rows)})
            for d in drops.values():
                self.run.summary[f"drop/{d['metric']}"] = d["drop_points"]
        self.run.finish()


def panels(row: Mapping[str, Any], order: list[str]) -> dict[str, Any]:
    """One epoch's figures by panel: curves, loss, remedy, train; `stage` counts up at every border."""
    found = {"global_step": row["global_step"], "stage": order.index(row["stage"]) if row["stage"] in order else 0}
    for name, value in row.items():
        if name in ("loss", "lr", "grad_norm", "seconds", "peak_memory_mib"):
            found[f"train/{name}"] = value
        elif name in (*HEADLINE.values(), "AP50"):
            found[f"curves/{name}"] = value
        elif name not in ("stage", "epoch", "global_step", "losses"):
            found[f"other/{name}"] = value
    for name, value in row.get("losses", {}).items():
        found[f"{'remedy' if name.startswith(REMEDIES) else 'loss'}/{name}"] = value
    return found


def box_data(outputs: dict[str, Any], names: Mapping[int, str], threshold: float) -> list[dict[str, Any]]:
    """The boxes of one image from a score on, as wandb draws them."""
    found = detections(outputs)[0]
    sure = found["scores"] >= threshold
    boxes, labels, scores = to_xyxy(found["boxes"])[sure], found["labels"][sure], found["scores"][sure]
    return [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box.tolist())),
            "class_id": int(label),
            "box_caption": f"{names[int(label)]} {float(score):.2f}",
            "scores": {"score": float(score)},
        }
        for box, label, score in zip(boxes, labels, scores)
    ]


def run_id(folder: Path) -> str:
    """The id that the run had before, or a new one, kept in the run's folder."""
    path = folder / "wandb_id.txt"
    if not path.is_file():
        write_text(path, f"{secrets.token_hex(4)}\n")
    return path.read_text().strip()
