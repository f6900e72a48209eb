"""What one query head costs or gains: the same backbone and neck with a conventional head for one task alone.

python -m scripts.baselines --stage det --config configs/single.yaml --data.root data

Same images, start, budget, optimiser, augmentation, averaging and scores as `engine.train`; only head and loss differ.
seg: Fast-SCNN's own classifier (arXiv 1902.04502, table 1) on the stride-8 map; det: FCOS (arXiv 1904.01355) of
torchvision on all three maps, its own loss and non-maximum suppression; cls: a linear layer on the mean of all maps.
The run's last row of metrics.jsonl holds the scores; configs/conventional.yaml trains all three for several seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from continual import ContinualConfig, Losses, Step
from engine.evaluation.evaluate import Evaluator
from engine.settings.config import Config, to_dict
from engine.settings.options import build_parser, to_config
from engine.storage.device import keep_freed_memory
from engine.storage.errors import run_cli
from engine.storage.files import run_lock, write_text
from engine.train import check_start
from engine.training.run import Run
from engine.training.stage import StageLoop
from engine.training.start import first_weights
from models.backbones.fast_scnn import depthwise_separable
from models.boxes import to_xyxy
from models.criterion import Criterion, LossConfig
from models.head import Outputs
from models.onehead import ModelConfig, OneHead, count_parameters
from models.targets import Targets

MOST = 100
"""Detections an image."""
BOX_PRIOR = 4.0
"""Starting distance of a box's sides from its cell's centre, in strides."""


class Conventional(OneHead):
    """Backbone and neck of OneHead under a head that knows one task."""

    def __init__(
        self, config: ModelConfig, classes: Mapping[str, Sequence[str]], size: int, losses: LossConfig
    ) -> None:
        super().__init__(config, classes, size)
        self.criterion = Criterion(losses)

    def change_head(self) -> None:
        """Put the conventional head in place; called after the start's weights have been read."""
        raise NotImplementedError

    def losses(self, images: Tensor, targets: Targets) -> Losses:
        """Loss terms of a batch."""
        raise NotImplementedError


class Segmenter(Conventional):
    """Fast-SCNN's classifier: two depthwise-separable convolutions, then a 1x1."""

    def change_head(self) -> None:  # noqa: D102
        dim, classes = self.config.dim, len(self.classes["seg"])
        convs = [depthwise_separable(dim, dim) for _ in range(2)]
        self.head = nn.Sequential(*convs, nn.Dropout(0.1), nn.Conv2d(dim, classes, 1))  # type: ignore[assignment]

    def forward(self, images: Tensor, *_: Any) -> Outputs:  # noqa: D102
        return {"pred_masks": self.head(self.features(images)[0])}

    def losses(self, images: Tensor, targets: Targets) -> Losses:  # noqa: D102
        count = self.criterion.counts(targets)[2]
        return self.criterion.segmentation(self(images)["pred_masks"], targets.masks, count)


class Classifier(Conventional):
    """Mean of all maps, then a linear layer."""

    def change_head(self) -> None:  # noqa: D102
        self.head = nn.Linear(3 * self.config.dim, len(self.classes["cls"]))  # type: ignore[assignment]

    def forward(self, images: Tensor, *_: Any) -> Outputs:  # noqa: D102
        pooled = torch.cat([m.mean((2, 3)) for m in self.features(images)], 1)
        return {"pred_class": self.head(pooled)}

    def losses(self, images: Tensor, targets: Targets) -> Losses:  # noqa: D102
        return self.criterion.classification(self(images)["pred_class"], targets, self.criterion.counts(targets)[3])


class Detector(Conventional):
    """torchvision's FCOS on the neck's maps."""

    def change_head(self) -> None:  # noqa: D102
        nothing = nn.Identity()
        nothing.out_channels = self.config.dim  # type: ignore[assignment]
        strides = self.backbone.strides
        anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        head: Any = FCOS(
            nothing, len(self.classes["det"]), anchor_generator=anchors, score_thresh=0.01, detections_per_img=MOST
        )
        # Zero, torchvision's start, puts every box at the dead end of a ReLU: nothing is ever learnt at our rates.
        nn.init.constant_(head.head.regression_head.bbox_reg.bias, BOX_PRIOR)
        self.head = head

    def read(self, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[int], ImageList]:
        """Raw outputs, anchors of each image, anchors a level, and the images as torchvision wants them."""
        maps = self.features(images)
        batch = ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images))
        raw = {k: v.float() for k, v in self.head.head(maps).items()}  # type: ignore[operator]
        return raw, self.head.anchor_generator(batch, maps), [m[0, 0].numel() for m in maps], batch  # type: ignore[operator]

    def losses(self, images: Tensor, targets: Targets) -> Losses:  # noqa: D102
        raw, anchors, counts, _ = self.read(images)
        pixels = [to_xyxy(b) * images.shape[-1] for b in targets.boxes]
        wanted = [{"boxes": b, "labels": y} for b, y in zip(pixels, targets.labels)]
        terms: Losses = self.head.compute_loss(wanted, raw, anchors, counts)  # type: ignore[operator]
        return terms

    def forward(self, images: Tensor, *_: Any) -> Outputs:
        """The final detections in the form of object queries: a score for one class, a box."""
        raw, anchors, counts, batch = self.read(images)
        split = {k: list(v.split(counts, dim=1)) for k, v in raw.items()}
        parts = [list(a.split(counts)) for a in anchors]
        found = self.head.postprocess_detections(split, parts, batch.image_sizes)  # type: ignore[operator]
        logits = images.new_full((len(images), MOST, len(self.classes["det"])), -100.0)
        boxes = images.new_full((len(images), MOST, 4), 0.5)
        for b, one in enumerate(found):
            n = len(one["scores"])
            logits[b, torch.arange(n), one["labels"]] = one["scores"].clamp(1e-6, 1 - 1e-6).logit()
            boxes[b, :n] = box_convert(one["boxes"], "xyxy", "cxcywh") / images.shape[-1]
        return {"pred_logits": logits, "pred_boxes": boxes}


HEADS: dict[str, type[Conventional]] = {"seg": Segmenter, "det": Detector, "cls": Classifier}


class ConventionalLoop(StageLoop):
    """The stage loop with the losses of a conventional head."""

    model: Conventional

    def task_specific(self) -> Collection[str]:
        """The whole head."""
        return [name for name, _ in self.model.named_parameters() if name.startswith("head.")]

    def losses(self, step: Step) -> Losses:
        """Loss terms of a step."""
        with self.run.accelerator.autocast():
            return self.model.losses(step.images, step.targets)


def train(config: Config, task: str, resume: bool) -> None:
    """Train the conventional head of one task, unless that is done. Raises UserError and DataError."""
    remedies_off = ContinualConfig(config.continual.freeze_statistics, distill=0, recall=0, replay_sets=0)
    config = replace(config, order=[task], continual=remedies_off)  # type: ignore[list-item]
    folder = Path(config.runs) / config.name
    with run_lock(folder):
        done = [task] if (folder / f"{task}.pt").is_file() else []
        check_start(config, folder, [task], done, None, resume)
        if not done:
            train_in(folder, config, task)


def train_in(folder: Path, config: Config, task: str) -> None:
    """Train it in a folder that no other run works in; a baseline that was interrupted begins again."""
    run = Run(config)
    run.evaluator = Evaluator({task: run.evaluator.task_sets[task]}, config.data.size)  # type: ignore[index, dict-item]
    run.track([], to_dict(config))
    set_seed(config.seed)
    model = HEADS[task](config.model, run.classes, config.data.size, config.loss)
    run.print(f"stage {task}: starts from {first_weights(model, config)}")
    model.change_head()
    run.print(f"conventional head: {count_parameters(model.head) / 1e6:.2f} M of {count_parameters(model) / 1e6:.2f} M")
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    ConventionalLoop(run, task, model, None).train()
    run.write_summary()
    print({k: v for k, v in run.tracker.rows[-1].items() if k not in ("losses", "lr")})


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = build_parser("python -m scripts.baselines", __doc__.split("\n")[0])
    parser.add_argument("--stage", choices=list(HEADS), required=True, help="the task to train alone")
    parser.add_argument("--resume", action="store_true", help="leave a baseline that is done as it is")
    parsed = parser.parse_args(argv)
    keep_freed_memory()
    train(to_config(parser, parsed), parsed.stage, parsed.resume)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
