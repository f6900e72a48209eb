"""The weights that the first stage of a run starts from, as `init` says."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from engine.settings.config import BACKBONE_OF, IMAGENET, STAGE0, Config
from engine.storage.checkpoint import (
    holds_head,
    load,
    load_backbone,
    load_pretrained,
    load_weights,
    read_shape,
    stage0_path,
)
from engine.storage.errors import UserError
from models.backbones import build_backbone
from models.backbones.timm_features import TimmFeatures
from models.onehead import OneHead
from models.pretrained_backbone import ClassifierReadout, PretrainedBackbone
from models.public_teacher import PublicTeacher


def first_weights(model: OneHead, config: Config) -> str:
    """Fill a new model as `init` says; returns a description of them."""
    kind, file = start_of(config)
    if kind == "random":
        return f"random weights ({file})"
    if kind == "whole":
        return f"{file}; new classes: {', '.join(load_weights(model, file)) or 'none'}"
    if kind == "imagenet":
        return f"{load_imagenet(model.backbone, config.model.backbone, file)}; neck and head: random weights"
    load_backbone(model, file)
    return f"{file}; neck and head: random weights"


def start_of(config: Config) -> tuple[Literal["random", "whole", "imagenet", "backbone"], str]:
    """What a run begins with: a kind of weights, and the file that holds them, or why there is none.

    Of stage 0's file neck and head are taken if it holds them and they have the shape that `model` asks for.
    """
    init, name = config.init, config.model.backbone
    if not init:
        return "random", "init is null"
    if init == STAGE0:
        path = stage0_path(name)
        if path is None:
            return "random", f"there are none of stage 0 for {name}, see init in --help"
        content = load(path)
        fits = holds_head(content) and replace(read_shape(content), queries=config.model.queries) == config.model
        return ("whole" if fits else "backbone"), str(path)
    if init.split(":")[0] == IMAGENET:
        return "imagenet", init.partition(":")[2]
    if init.startswith(BACKBONE_OF):
        return "backbone", init.removeprefix(BACKBONE_OF)
    return ("whole" if holds_head(load(init)) else "backbone"), init


def pretrained_backbone(config: Config) -> PretrainedBackbone | None:
    """The backbone that a run begins with, None if it is random.

    Public weights name pictures by their own classifier, what began with stage 0's weights itself by that of stage 0.
    """
    kind, file = start_of(config)
    name = config.model.backbone
    if kind == "random":
        return None
    if kind == "imagenet":
        backbone = build_backbone(name)
        load_imagenet(backbone, name, file)
        return PretrainedBackbone(backbone, load_classifier(backbone, file) if config.continual.recall else None)
    found, before = load_pretrained(file, name), stage0_path(name)
    if before and found.readout is None and load(file).get("config", {}).get("init") == STAGE0:
        return PretrainedBackbone(found.backbone, load_pretrained(before, name).readout)
    return found


def load_classifier(backbone: object, file: str) -> ClassifierReadout | None:
    """The classifier in the file that a backbone has its ImageNet weights from; None if it holds none."""
    assert isinstance(backbone, TimmFeatures)
    network = PublicTeacher(backbone.name)
    try:
        network.load_imagenet(file or None)
    except ValueError:  # the backbone's own weights have been read from it before
        return None
    return ClassifierReadout(network)


def load_imagenet(backbone: object, name: str, file: str) -> str:
    """Give a backbone its public ImageNet weights and return where they are from. Raises UserError."""
    if not isinstance(backbone, TimmFeatures):
        raise UserError(f"--init {IMAGENET}: there are no public ImageNet weights for {name}")
    try:
        return backbone.load_imagenet(file or None)
    except ValueError as error:
        raise UserError(f"{error}; fetch those of {name} elsewhere and give --init {IMAGENET}:FILE") from None
