"""Checkpoints: what they hold, how they are written without ever losing the previous one, how a model is read back."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from engine.storage import eight_bits
from engine.storage.errors import UserError, first_line
from engine.storage.files import cannot_write
from models.backbones import build_backbone
from models.onehead import ModelConfig, OneHead
from models.postprocess import THRESHOLD
from models.pretrained_backbone import PooledReadout, PretrainedBackbone

FORMAT, EIGHT_BITS = "onehead/1", "onehead/2"
"""What a file says it is: the second with weights in eight bits, which older versions of this program refuse."""
RENAMED = {"seen": "training_images", "matching": "distillation"}
"""Keys of older checkpoints, and their names today."""
WEIGHTS = Path(__file__).parents[2] / "weights"
"""Where the weights lie that come with this repository."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then rename it: a crash or a full disk leaves the old file whole.

    Raises UserError naming the file when it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    serialised = io.BytesIO()  # torch, writing to a file itself, hides why the system refused
    torch.save({"format": FORMAT, **content}, serialised)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(serialised.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the previous file is untouched" if path.exists() else ""
        raise cannot_write(path, error, kept) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without executing any code that it may hold; weights in eight bits are float32 again.

    Raises UserError when the file is missing, damaged, holds more than tensors and plain values, or is not ours.
    """
    content = load_stored(path)
    try:
        eight_bits.restore(content, Path(path).stat().st_size)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds weights in eight bits that cannot be read ({first_line(error)}): publish it again"
        ) from None
    return content


def load_stored(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as `load`, weights as they are stored."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: give the path of a checkpoint such as runs/onehead/cls.pt")
    if not stored_zip(path):
        raise UserError(f"{path} is no checkpoint or a damaged one: give a file written by engine.train")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is not what it says
        raise UserError(
            f"{path} was not loaded: it is damaged or holds Python objects, which could run code "
            f"({first_line(error)}). Give a file written by engine.train"
        ) from None
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, EIGHT_BITS):
        raise UserError(f"{path} is no OneHead checkpoint (format {FORMAT}): give a file written by engine.train")
    for old in RENAMED.keys() & content.keys():
        content[RENAMED[old]] = content.pop(old)
    content.get("config", {}).get("model", {}).pop("exclusive", None)  # a setting that is gone, see `read_shape`
    return content


def stored_zip(path: Path) -> bool:
    """Whether a file is an archive as torch writes it: what it unpacks to is no larger than itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def model_content(model: OneHead) -> dict[str, Any]:
    """What is needed to rebuild a model: weights, shape, classes, input size, threshold of its boxes."""
    return {
        "model": model.state_dict(),
        "architecture": asdict(model.config),
        "input_size": model.input_size,
        "threshold": model.threshold,
        "classes": {task: list(names) for task, names in model.classes.items()},
    }


def build_model(content: dict[str, Any], source: str) -> OneHead:
    """Rebuild the model that a checkpoint's content describes. Raises UserError when the two do not fit."""
    if not holds_head(content):
        raise UserError(f"{source} is the backbone of stage 0, to start a training from (--init {source}), not a model")
    try:
        shape = read_shape(content), content["classes"], content["input_size"]
        with torch.device("meta"):  # takes no memory, so that a false size is noticed before it takes all
            check_shapes(OneHead(*shape).state_dict(), content["model"])
        model = OneHead(*shape)
        model.load_state_dict(content["model"])
        model.threshold = read_threshold(content)
    except Exception as error:  # a network built from values that make no sense can raise anything
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source} holds another model than this program builds ({first}): "
            "use the program version that wrote it, or train anew"
        ) from None
    return model


def holds_head(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content is of a whole network, not of a backbone that stage 0 has trained."""
    return content.get("stage") != "pretrain"


def read_shape(content: dict[str, Any]) -> ModelConfig:
    """Shape of a checkpoint's network. Raises ValueError for one whose classes of objects share one softmax."""
    shape = dict(content["architecture"])
    if shape.pop("exclusive", "threshold" not in content):  # a setting, later than the softmax, earlier than thresholds
        raise ValueError("its classes of objects share one softmax")
    return ModelConfig(**shape)


def read_threshold(content: Mapping[str, Any]) -> float:
    """Least score of a box that is shown, as a file holds it; one without is from before it was measured."""
    threshold = float(content.get("threshold", THRESHOLD))
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is no score")
    return threshold


def check_shapes(own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise ValueError naming the first weight that only one of two models has, or that differs in shape."""
    for name in {**own, **found}:
        if name not in own or name not in found or own[name].shape != found[name].shape:
            raise ValueError(f"{name} does not fit")


def load_model(path: str | Path, device: torch.device | str = "cpu") -> OneHead:
    """The trained network of a checkpoint, in eval mode on `device`. Raises UserError as `load` and `build_model`."""
    model = build_model(load(path), str(path))
    return model.float().to(device).to(memory_format=torch.channels_last).eval()


def load_weights(model: OneHead, path: str | Path) -> list[str]:
    """Start `model` from a checkpoint of the same architecture, whatever its classes.

    Returns the tasks whose class rows start fresh, because the classes are others. Raises UserError when any other
    weight does not fit.
    """
    theirs = build_model(load(path), str(path))
    own, found = model.state_dict(), theirs.state_dict()
    shared = [k for k in own if k not in ("head.class_queries", "head.projection.weight", "head.projection.bias")]
    odd = [k for k in shared if k not in found or found[k].shape != own[k].shape]
    if odd or model.config.dim != theirs.config.dim:
        raise UserError(
            f"{path} holds another model: {len(odd)} of {len(own)} weights do not fit, such as {odd[0]}; "
            "choose another --init, or the --model settings it was made with"
        )
    for name in ("heads", "points", "layers"):  # their weights fit, and mean something else
        own_value, their_value = getattr(model.config, name), getattr(theirs.config, name)
        if own_value != their_value:
            raise UserError(
                f"{path} has model.{name} {their_value}, not {own_value}: choose another --init, or set "
                f"--model.{name} {str(their_value).lower()}"
            )
    model.load_state_dict({k: found[k] for k in shared}, strict=False)
    same = [task for task in model.classes if model.classes[task] == theirs.classes[task]]
    return model.head.adopt_rows(theirs.head, same)


def load_optimizer(optimizer: torch.optim.Optimizer, content: dict[str, Any], path: Path) -> None:
    """Take up the optimiser of an interrupted stage. Raises UserError when it is one of other groups of weights."""
    kinds = ["momentum" in state["param_groups"][0] for state in (optimizer.state_dict(), content["optimizer"])]
    try:
        if kinds[0] != kinds[1]:  # Muon's groups have it, AdamW's do not
            raise ValueError
        optimizer.load_state_dict(content["optimizer"])
    except ValueError:
        raise UserError(
            f"{path} holds another optimiser, or one with other groups of weights: resume with the rates, weight decay "
            "and version of this program that the run began with, or start under a new --name"
        ) from None


def stage0_path(backbone: str) -> Path | None:
    """The weights of stage 0 that come with this repository, None if there are none for the backbone."""
    path = WEIGHTS / f"{backbone}_stage0.pt"
    return path if path.is_file() else None


def backbone_weights(path: str | Path, backbone: str) -> dict[str, Tensor]:
    """Weights of the backbone in a checkpoint of stage 0 or of a whole network, under the backbone's own names.

    Raises UserError for another backbone, or weights that do not fit.
    """
    return backbone_of(load(path), path, backbone)


def backbone_of(content: dict[str, Any], path: str | Path, backbone: str) -> dict[str, Tensor]:
    """`backbone_weights` of a checkpoint's content."""
    if not {"architecture", "model"} <= content.keys():
        raise UserError(f"{path} is of an unfinished stage 0: finish it with --resume, and give its pretrain.pt")
    theirs = content["architecture"].get("backbone")
    if theirs != backbone:
        raise UserError(f"{path} has the backbone {theirs}, not {backbone}: choose another")
    prefix = "backbone."
    found = {k.removeprefix(prefix): v.float() for k, v in content["model"].items() if k.startswith(prefix)}
    with torch.device("meta"):
        own = build_backbone(backbone).state_dict()
    try:
        check_shapes(own, found)
    except ValueError as error:
        raise UserError(f"{path} holds another {backbone} than this program builds ({error}): choose another") from None
    return found


def load_backbone(model: OneHead, path: str | Path) -> None:
    """Start only the backbone from a checkpoint, whatever else it holds. Raises UserError for another backbone."""
    weights = backbone_weights(path, model.config.backbone)
    model.load_state_dict({f"backbone.{k}": v for k, v in weights.items()}, strict=False)


def load_pretrained(path: str | Path, backbone: str) -> PretrainedBackbone:
    """The backbone of a checkpoint as `hold` and `recall` take it. Raises UserError as `backbone_weights`."""
    net = build_backbone(backbone)
    content = load(path)
    net.load_state_dict(backbone_of(content, path, backbone))
    return PretrainedBackbone(net, load_readout(content.get("readout")))


def load_readout(state: dict[str, Tensor] | None) -> PooledReadout | None:
    """The layer by which stage 0 names pictures, if a checkpoint holds it."""
    if state is None:
        return None
    readout = PooledReadout(state["weight"].shape[1], state["weight"].shape[0])
    readout.linear.load_state_dict({k: v.float() for k, v in state.items()})
    return readout


def provenance() -> dict[str, str]:
    """Versions and commit that made a file."""
    return {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "commit": commit(WEIGHTS.parent) or "unknown",
    }


def commit(root: Path) -> str | None:
    """The commit of the repository whose top folder is `root`; None without git, and inside somebody else's.

    It ends in "-dirty", as `git describe` has it, where files that git knows have been changed since.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook names its own

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, cwd=root, env=own, check=True, timeout=10)
        return os.fsdecode(done.stdout)

    try:
        top, found = git("rev-parse", "--show-toplevel", "--short", "HEAD").splitlines()
        if Path(top).resolve() != root.resolve():
            return None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    with suppress(OSError, subprocess.SubprocessError):  # of a slow disk, say: the commit is still known
        changed = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return found + ("-dirty" if changed else "")
    return found
