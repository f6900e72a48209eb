"""Every setting of a run, with its only default; options.py lets files and the command line change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from continual import ContinualConfig
from data.transforms import Augment
from data.types import Fold, Task
from data.views import ViewConfig
from models.criterion import LossConfig
from models.onehead import ModelConfig

STAGE0 = "stage0"
"""Value of `init` that stands for the weights of stage 0 in this repository: the backbone's, and those of neck and head
if the file holds them and they fit."""
BACKBONE_OF = "backbone:"
"""Start of an `init` that asks for the backbone of a checkpoint alone."""
IMAGENET = "imagenet"
"""Value of `init` that stands for the backbone's public ImageNet weights; "imagenet:FILE" reads them from a file."""


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they reach the network."""

    root: str = "data"
    """Folder that holds the three sets."""
    eval_root: str | None = None
    """Folder whose val (or test) sets are evaluated instead of those of `root`: other images to choose recipes on."""
    size: int = 256
    """Side of the square network input, in training and deployment; a multiple of 32."""
    holdout: bool = False
    """Train on 5/6 of the training images, evaluate on the rest: for choices that leave the validation set unread."""
    fold: Fold = 0
    """Which sixth `holdout` holds back: what looks better on 40 images often does not on the next 40."""
    workers: int | None = None
    """Loader processes; null: 2 with a GPU, else 0 (decoded images are kept in memory)."""
    augment: Augment = field(default_factory=Augment)
    """Variation of training images."""
    plain_end: float = 0.0
    """Last share of each stage whose own images, not replayed ones, are only mirrored."""


@dataclass(frozen=True)
class Epochs:
    """Passes over the training images of each stage."""

    seg: int = 24
    """Of the segmentation stage."""
    det: int = 48
    """Of the detection stage."""
    cls: int = 30
    """Of the classification stage."""
    joint: int = 60
    """Of `--stage joint`, all tasks at once."""


@dataclass(frozen=True)
class SharedRates:
    """Factor of each stage's learning rate in what the tasks share: backbone, neck, decoder layers."""

    seg: float = 1.0
    """In the segmentation stage."""
    det: float = 1.0
    """In the detection stage."""
    cls: float = 1.0
    """In the classification stage."""
    joint: float = 1.0
    """In `--stage joint`."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser (AdamW), schedule (warm-up, then cosine to zero) and weight averaging."""

    batch: int = 16
    """Images a step, over all processes together."""
    lr: float = 1e-3
    """Highest learning rate, that of what single tasks own: projection and class queries."""
    shared_lr: SharedRates = field(default_factory=SharedRates)
    backbone_lr: float = 1.0
    """Further factor of the learning rate in the backbone; 0: it is not trained, and its statistics do not move."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices and filters; biases, norms and scales have none."""
    warmup: float = 0.05
    """Share of a stage's steps with a rising rate."""
    probe: float = 0.0
    """Share of a later stage's steps in which only projection and class queries learn; the rest then rises slowly."""
    clip: float = 2.0
    """Largest gradient norm."""
    ema: float = 0.99
    """Decay of the averaged weights, which are the ones evaluated, saved and used as teacher; reached slowly: after n
    steps it is at most 1 - n^(-2/3), 0.988 after 720."""
    epochs: Epochs = field(default_factory=Epochs)


@dataclass(frozen=True)
class TrackConfig:
    """What is recorded while training."""

    evals: int = 4
    """Evaluations of all three sets a stage, the last one at its end."""
    save_seconds: float = 30.0
    """Least time between two writes of last.pt; 0 writes it after every epoch."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; nothing else depends on it."""
    project: str = "onehead"
    """Project name there."""
    group: str = ""
    """Runs with the same group are shown together there."""


@dataclass(frozen=True)
class PretrainConfig:
    """Stage 0: a backbone learns from photographs without labels what a public network knows."""

    sources: list[str] = field(
        default_factory=lambda: ["data/pretrain/tiny-imagenet-200.zip", "data/pretrain/imagenette2-160.tgz"]
    )
    """Folders, zips or tars of photographs; one that is named twice is seen twice as often."""
    side: int = 160
    """Shorter side of the photographs in memory, at most."""
    teacher: str = "tf_efficientnet_lite0"
    """Convolutional network of timm with public ImageNet weights."""
    teacher_weights: str | None = None
    """File of those weights; null: downloaded by its address in timm."""
    runtime: Literal["torch", "openvino"] = "torch"
    """What runs the teacher; openvino, if installed, is more than twice as fast on a CPU."""
    init: str | None = None
    """Checkpoint of which the backbone goes on; null: random weights."""
    views: int = 6_000_000
    """Views of photographs in the whole run."""
    minutes: float | None = None
    """Stop after so many minutes; resuming goes on from there. null: no limit."""
    sizes: list[int] = field(default_factory=lambda: [128, 128, 128, 160, 224])
    """Sides of the views, one after the other for equal numbers of views."""
    view: ViewConfig = field(default_factory=ViewConfig)
    batch: int = 64
    """Views a step."""
    lr: float = 5e-3
    """Highest learning rate of Muon, flat for the first half, then a cosine to zero; norms and biases have a fifth."""
    weight_decay: float = 1e-5
    """Decoupled weight decay of filters and matrices: nearly none, as suits small networks that are taught."""
    clip: float = 5.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones published."""


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "onehead"
    """Run folder below `runs`."""
    runs: str = "runs"
    """Where run folders lie."""
    seed: int = 0
    """Seed of everything random."""
    order: list[Task] = field(default_factory=lambda: ["seg", "det", "cls"])
    """Order of the stages; one task alone, with the remedies off, gives its single-task baseline."""
    init: str | None = STAGE0
    """What the first stage starts from. stage0: weights/<backbone>_stage0.pt; FILE: a checkpoint; backbone:FILE: its
    backbone alone; imagenet or imagenet:FILE: public weights of the backbone, downloaded or not; null: random."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: what the device is fast at (see engine.storage.device)."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary, as written to config.yaml and into checkpoints."""
    plain: dict[str, Any] = dataclasses.asdict(config)
    return {k: (tuples_to_lists(v)) for k, v in plain.items()}


def tuples_to_lists(value: Any) -> Any:
    """YAML has no tuples."""
    if isinstance(value, dict):
        return {k: tuples_to_lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def changed_settings(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Of a dictionary as config.yaml holds it: default and value, by dotted key, of what differs from the default."""
    defaults = flat(to_dict(Config()))
    return {key: (defaults.get(key), value) for key, value in flat(settings).items() if value != defaults.get(key)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
