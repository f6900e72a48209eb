"""What features are worth as they are: linear readouts of a frozen network.

python -m scripts.probe_features --init stage0 --data_root data
python -m scripts.probe_features --init stage0 --data_root data --score ROOT     # sets that no choice is reported on

Top-1: a linear layer on the means of the maps. mIoU: a linear layer on every cell of the maps, brought to stride 8
beside their means; `--read parts` reads masks also from the finest map alone and from that with the means. Both learn
from training images and are scored on the sets below `--score`. Without it only training images are used: every one is
classified once, in six folds, and masks are learnt from the 200 images of data.holdout and scored on the other 40.
Nothing of the network itself is trained. `--maps` chooses which maps are read, the neck's or the backbone's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data.catalog import load_set
from data.dataset import TaskDataset
from data.types import TASKS, TaskSet
from engine.evaluation.metrics import SegmentationTally, confusion_matrix, predicted_mask
from engine.settings.config import STAGE0, Config
from engine.storage.checkpoint import provenance
from engine.storage.device import cpu_name
from engine.storage.errors import run_cli
from engine.storage.files import write_text
from engine.training.start import first_weights
from models.backbones import BACKBONES
from models.onehead import ModelConfig, OneHead
from models.targets import VOID

FOLDS = 6
RIDGE = 1e-2
"""L2 penalty of the classification readout, per image and weight; 3e-3 to 3e-2 gave the same to a point."""
PASSES, RATE = 20, 2e-3
"""Of the segmentation readout: passes over the images, highest learning rate."""


@torch.no_grad()
def read(model: OneHead, task_set: TaskSet, maps_of: str) -> tuple[Tensor, Tensor]:
    """Features (N, F, S/8, S/8), half precision, of all images of a set, with their masks (N, S, S) or labels (N,)."""
    dataset = TaskDataset(task_set, model.input_size, None)
    features, answers = [], []
    for i in tqdm(range(len(dataset)), desc=f"reading {task_set.task}", leave=False, disable=None):
        sample = dataset[i]
        images = sample.image[None]
        maps = model.features(images) if maps_of == "neck" else model.backbone_maps(images)
        size = maps[0].shape[-2:]
        wide = [F.interpolate(m, size, mode="bilinear") for m in maps]
        mean = torch.cat([m.mean((2, 3), keepdim=True) for m in maps], dim=1).expand(-1, -1, *size)
        features.append(torch.cat([*wide, mean], dim=1).half())
        answers.append(sample.mask if sample.mask is not None else torch.tensor(sample.label))
    return torch.cat(features), torch.stack(answers)


def spread(features: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of features over `dims`, which are kept."""
    return features.float().mean(dims, keepdim=True), features.float().std(dims, keepdim=True) + 1e-6


def label_readout(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear classifier learnt from (N, F), as a function from features to labels."""
    mean, std = spread(features, (0,))
    x = (features.float() - mean) / std
    layer = nn.Linear(x.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        layer.zero_grad()
        loss = F.cross_entropy(layer(x), labels) + RIDGE * layer.weight.square().sum() / 2
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return lambda features: layer((features.float() - mean) / std).argmax(1)


def probe_labels(features: Tensor, labels: Tensor) -> float:
    """Top-1 of linear classifiers of (N, F), each image classified by the one that has not seen it."""
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    right = 0
    for k in range(FOLDS):
        found = label_readout(features[fold != k], labels[fold != k])(features[fold == k])
        right += int((found == labels[fold == k]).sum())
    return right / len(labels)


def probe_masks(fit: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], classes: Sequence[str]) -> float:
    """MIoU on held-back images of a linear classifier of cells."""
    features, masks = fit
    mean, std = spread(features, (0, 2, 3))
    step = masks.shape[-1] // features.shape[-1]
    cells = masks[:, step // 2 :: step, step // 2 :: step]
    layer = nn.Conv2d(features.shape[1], len(classes), 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    for epoch in tqdm(range(PASSES), desc="learning masks", leave=False, disable=None):
        optimizer.param_groups[0]["lr"] = RATE * (1 - epoch / PASSES)
        for chosen in torch.randperm(len(features)).split(8):
            logits = layer((features[chosen].float() - mean) / std)
            F.cross_entropy(logits, cells[chosen], ignore_index=VOID).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = []
    with torch.no_grad():
        for one, mask in zip(*held):
            logits = layer((one[None].float() - mean) / std)[0]
            predicted = predicted_mask(logits, (mask.shape[0], mask.shape[1]))
            found.append(confusion_matrix(mask, predicted, len(classes), void=VOID))
    return SegmentationTally(np.stack(found), tuple(classes)).scores()["mIoU"]


def read_labels(model: OneHead, args: argparse.Namespace) -> dict[str, float]:
    """Top-1 of the linear readout of pooled maps."""
    learnt = load_set(args.data_root, "cls", "train")
    features, labels = pooled(read(model, learnt, args.maps))
    if args.score is None:
        return {"Top-1": round(probe_labels(features, labels), 4)}
    seen, truth = pooled(read(model, load_set(args.score, "cls", "val", learnt.classes), args.maps))
    return {"Top-1": round(float((label_readout(features, labels)(seen) == truth).float().mean()), 4)}


def pooled(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The second half of the features, their means, which are the same in every cell; and the labels."""
    features, labels = found
    return features[:, features.shape[1] // 2 :, 0, 0], labels


def read_masks(model: OneHead, args: argparse.Namespace) -> dict[str, float]:
    """MIoU of the linear readout of cells, and of those of parts of the features on request."""
    fit = load_set(args.data_root, "seg", "train", part="fit" if args.score is None else "all")
    held = (
        load_set(args.data_root, "seg", "train", part="choose")
        if args.score is None
        else load_set(args.score, "seg", "val", fit.classes)
    )
    (seen, learnt), (shown, truth) = (read(model, s, args.maps) for s in (fit, held))
    every = list(range(seen.shape[1]))
    width = model.config.dim if args.maps == "neck" else model.backbone.channels[0]
    finest, means = every[:width], every[len(every) // 2 :]
    readouts = {"mIoU": every}
    if "parts" in args.read:
        readouts |= {"mIoU of the finest map": finest, "mIoU of the finest map and the means": finest + means}
    return {
        name: round(probe_masks((seen[:, of], learnt), (shown[:, of], truth), fit.classes), 4)
        for name, of in readouts.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON object, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default=STAGE0, help="as in engine.train; null: random weights")
    parser.add_argument("--backbone", default=ModelConfig.backbone, choices=sorted(BACKBONES))
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--score", metavar="ROOT", help="root of sets, split val, that the readouts are scored on")
    parser.add_argument("--maps", choices=("neck", "backbone"), default="backbone", help="which maps are read")
    parser.add_argument("--size", type=int, default=256, help="side of the input")
    readouts = ("labels", "masks", "parts")
    parser.add_argument("--read", nargs="+", choices=readouts, default=readouts[:2], help="what is read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args(argv)
    sets = {task: load_set(args.data_root, task, "train") for task in TASKS}
    config = Config(init=None if args.init == "null" else args.init, model=ModelConfig(backbone=args.backbone))
    set_seed(config.seed)
    model = OneHead(config.model, {task: s.classes for task, s in sets.items()}, args.size)
    print(first_weights(model, config), file=sys.stderr)
    model.eval()
    figures: dict[str, object] = {"init": args.init, "maps": args.maps, "size": args.size}
    figures["scored on"] = Path(args.score).name if args.score else "training images held back"
    if "labels" in args.read:
        figures |= read_labels(model, args)
    if "masks" in args.read or "parts" in args.read:
        figures |= read_masks(model, args)
    figures |= {"machine": cpu_name(), **provenance()}
    text = json.dumps(figures)
    if args.json:
        write_text(args.json, text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
