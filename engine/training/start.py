"""The weights that the first stage of a run starts from, as `init` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.settings.config import BACKBONE_OF, IMAGENET, STAGE0, Config
from engine.storage.checkpoint import load, load_backbone, load_model, load_weights, read_shape, stage0_path
from engine.storage.errors import UserError
from models.backbones.timm_features import TimmFeatures
from models.onehead import OneHead


def first_weights(model: OneHead, config: Config) -> str:
    """Fill a new model as `init` says; returns in words with what."""
    path = whole_start(config)
    if path is not None:
        return f"{path}; new classes: {', '.join(load_weights(model, path)) or 'none'}"
    if not config.init:
        return "random weights (init is null)"
    if config.init.split(":")[0] == IMAGENET:
        return f"{load_imagenet(model, config.init.partition(':')[2])}; neck and head: random weights"
    if config.init.startswith(BACKBONE_OF):
        load_backbone(model, config.init.removeprefix(BACKBONE_OF))
        return f"{config.init}; neck and head: random weights"
    path = stage0_path(config.model.backbone)
    if path is None:
        return f"random weights: there are none of stage 0 for {config.model.backbone} (see init in --help)"
    load_backbone(model, path)
    return f"{path}, backbone only: neck and head have another shape"


def whole_start(config: Config) -> Path | None:
    """The checkpoint that fills all of the network but the rows of new classes, None if there is none."""
    init = config.init or ""
    if init != STAGE0:
        return Path(init) if init and not init.startswith(BACKBONE_OF) and init.split(":")[0] != IMAGENET else None
    path = stage0_path(config.model.backbone)
    if path is None:
        return None
    own, found = config.model, read_shape(load(path))
    return path if replace(found, queries=own.queries, exclusive=own.exclusive) == own else None


def pretrained_model(config: Config) -> OneHead | None:
    """The network that a run begins with, its own classes and all, None if not all of it is pretrained."""
    path = whole_start(config)
    return load_model(path) if path else None


def load_imagenet(model: OneHead, file: str) -> str:
    """Give the backbone its public ImageNet weights and return where they are from. Raises UserError."""
    name = model.config.backbone
    if not isinstance(model.backbone, TimmFeatures):
        raise UserError(f"--init {IMAGENET}: there are no public ImageNet weights for {name}")
    try:
        return model.backbone.load_imagenet(file or None)
    except ValueError as error:
        raise UserError(f"{error}; fetch those of {name} elsewhere and give --init {IMAGENET}:FILE") from None
