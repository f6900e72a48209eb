"""What a stage starts from. The first that exists:

1. last.pt of this run, if it was interrupted (with --resume)
2. --init, for the first stage of the run
3. the previous stage's checkpoint of this run
4. the weights of stage 0, weights/<backbone>_stage0.pt
5. nothing: random weights, and it says so
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed

from engine.checkpoint import build_model, load, load_backbone, load_model, load_weights, read_shape, stage0_path
from engine.config import BACKBONE_OF, IMAGENET, STAGE0, Config
from engine.errors import UserError
from engine.seen import listed
from models.backbones.timm_features import TimmFeatures
from models.onehead import OneHead

if TYPE_CHECKING:
    from engine.run import Run


def start_model(run: Run, name: str, unfinished: dict[str, Any] | None) -> tuple[OneHead, dict[str, Any]]:
    """The model that a stage starts from and the remedies' state, by the precedence at the top of this file."""
    config, before = run.config, run.previous(name)
    path = run.folder / ("last.pt" if unfinished else f"{before}.pt")
    check_data(run, name, unfinished or (load(path) if before else None), path)
    if unfinished:
        run.say(f"stage {name}: resumed after epoch {unfinished['epoch']}")
        return build_model(unfinished, str(path)), unfinished["remedies"]
    if before:
        run.say(f"stage {name}: starts from {path}")
        return load_model(path), load(path)["remedies"]
    set_seed(config.seed)
    model = OneHead(config.model, run.classes, config.data.size)
    run.say(f"stage {name}: starts from {first_weights(model, config)}")
    return model, {}


def check_data(run: Run, name: str, content: dict[str, Any] | None, path: Path) -> None:
    """Say what of the data differs from that which a stage's start was trained with.

    Other images are a note; raises UserError for other classes, for which the network has no rows.
    """
    if content is None:
        return
    for task, names in content["classes"].items():
        own = run.classes.get(task, ())
        if list(own) != list(names):
            raise UserError(
                f"stage {name}: the classes of {task} were {_some(names)} when {path} was written, and are "
                f"{_some(own)} in {run.config.data.root} now: give the data it was trained with, or train anew with "
                "another --name"
            )
    learnt = [task for task in run.digests if task in (*content.get("old", ()), content.get("stage"))]
    seen, now = listed(content), {digest for task in learnt for digest in run.digests[task]}
    if seen is None or not learnt:
        return
    first = run.start_file(run.config.order[0])
    inherited = (listed(load(first)) or set()) if first and first.is_file() else set()
    new, gone = len(now - seen), len(seen - now - inherited)
    if new or gone:
        run.say(
            f"note: stage {name}: the training images of {', '.join(learnt)} are not those that {path} has learnt from "
            f"({new} new, {gone} gone)"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


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
