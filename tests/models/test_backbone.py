from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import backbones
from models.backbones import BACKBONES
from models.backbones.fast_scnn import Bottleneck, DepthwiseConv2d, FastSCNN
from models.backbones.imagenet import timm_names
from models.backbones.timm_features import TimmFeatures
from models.backbones.yolov8 import YOLOv8n
from models.criterion import Criterion, LossConfig
from models.neck import FPN
from models.onehead import ModelConfig, OneHead, count_parameters
from tests.data.server import Server
from tests.models.builders import CLASSES, TINY, images, random_targets, tiny

LITE0 = "tf_efficientnet_lite0"

PUBLISHED = 1.11e6
"""Parameters of the whole Fast-SCNN with its classifier, arXiv 1902.04502, table 4."""


def separable_parameters(channels: int) -> int:
    """3x3 depthwise and 1x1 convolution, each with the two vectors of its batch norm."""
    return channels * 9 + 2 * channels + channels * channels + 2 * channels


def test_parameter_count_is_the_published_one() -> None:
    features = count_parameters(FastSCNN())
    assert features == 1_099_248
    # The classifier that is dropped: two separable convolutions, then 1x1 to the 19 classes of Cityscapes.
    classifier = 2 * separable_parameters(128) + 128 * 19 + 19
    assert classifier == 38_547
    assert features + classifier == pytest.approx(PUBLISHED, rel=0.03)


def test_yolov8n_has_the_published_number_of_parameters() -> None:
    # Layer by layer as the model's own summary lists them.
    layers = [464, 4672, 7360, 18560, 49664, 73984, 197632, 295424, 460288, 164608]
    backbone = BACKBONES["yolov8n"]()
    assert isinstance(backbone, YOLOv8n)
    stages = [*backbone.stage8, *backbone.stage16, *backbone.stage32]
    assert [count_parameters(stage) for stage in stages] == layers


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_stays_below_the_limit(name: str) -> None:
    names = {task: [str(i) for i in range(n)] for task, n in (("seg", 21), ("det", 10), ("cls", 10))}
    assert count_parameters(OneHead(ModelConfig(backbone=name), names)) < 8e6


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("size", [(160, 160), (320, 512)])
def test_announced_channels_and_strides_are_true(name: str, size: tuple[int, int]) -> None:
    backbone = BACKBONES[name]()
    with torch.no_grad():
        maps = backbone.eval()(images(1, *size))  # type: ignore[attr-defined]
    assert backbone.strides == (8, 16, 32)
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(backbone.channels, backbone.strides)
    ]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_part_of_a_backbone_is_used(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name]().train()  # type: ignore[attr-defined]
    sum(m.square().mean() for m in backbone(images(2, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("c_out", "stride", "passes"), [(8, 1, True), (8, 2, False), (12, 1, False)])
def test_bottlenecks_add_their_input_where_shapes_allow(c_out: int, stride: int, passes: bool) -> None:
    block = Bottleneck(8, c_out, stride).eval()
    nn.init.zeros_(block.block[-1][0].weight)  # all that remains is the shortcut
    x = torch.randn(1, 8, 6, 6)
    found = block(x)
    assert found.shape == (1, c_out, 6 // stride, 6 // stride)
    assert torch.equal(found, x) if passes else not found.any()


def test_depthwise_convolutions_stay_in_float32_on_the_cpu() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    x = torch.randn(2, 8, 16, 16)
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


# --- public ImageNet weights ---


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A state dictionary as timm publishes it, classifier included."""
    torch.manual_seed(3)
    model = timm.create_model("mobilenetv3_small_100")
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def lite0() -> dict[str, Tensor]:
    """A state dictionary of EfficientNet-Lite0 under timm's names."""
    torch.manual_seed(4)
    state: dict[str, Tensor] = timm.create_model(LITE0).state_dict()
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}


def small() -> TimmFeatures:
    backbone = BACKBONES["mobilenetv3_small"]()
    assert isinstance(backbone, TimmFeatures)
    return backbone


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_imagenet_weights_from_a_file(published: dict[str, Tensor], tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"w.{ending}"
    torch.save(published, path) if ending == "pth" else save_file(published, path)
    backbone = small()
    assert backbone.load_imagenet(str(path)) == str(path)
    assert all(torch.equal(v, published[k]) for k, v in backbone.body.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight"),
        ("_blocks.0._bn1.bias", "blocks.0.0.bn1.bias"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.0._bn2.weight", "blocks.0.0.bn2.weight"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.2._bn0.running_mean", "blocks.1.1.bn1.running_mean"),
        ("_blocks.3._depthwise_conv.weight", "blocks.2.0.conv_dw.weight"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
        ("_blocks.15._bn2.bias", "blocks.6.0.bn3.bias"),
        ("_conv_head.weight", "conv_head.weight"),
        ("_fc.bias", "classifier.bias"),
        ("blocks.6.0.bn3.bias", "blocks.6.0.bn3.bias"),
    ],
)
def test_names_of_efficientnet_pytorch(name: str, expected: str, lite0: dict[str, Tensor]) -> None:
    expanding = {f"_blocks.{i}._expand_conv.weight": torch.zeros(1) for i in range(1, 16)}
    value = torch.ones(1)
    found = timm_names({**expanding, name: value}, lite0)
    assert found[expected] is value
    assert len(found) == len(expanding | {name: value})


def test_weights_under_names_of_efficientnet_pytorch_are_read_whole(lite0: dict[str, Tensor], tmp_path: Path) -> None:
    numbers = {block: i for i, block in enumerate(dict.fromkeys(k[:10] for k in lite0 if k.startswith("blocks.")))}
    plain = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
    expanding = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    expanding |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    theirs = {}
    for key, value in lite0.items():
        if key.startswith("blocks."):
            layer, rest = key[11:].split(".", 1)
            theirs[f"_blocks.{numbers[key[:10]]}.{(expanding if numbers[key[:10]] else plain)[layer]}.{rest}"] = value
        else:
            layer, rest = key.split(".", 1)
            theirs[f"{top[layer]}.{rest}"] = value
    torch.save(theirs, tmp_path / "w.pth")
    backbone = TimmFeatures(LITE0)
    backbone.load_imagenet(str(tmp_path / "w.pth"))
    assert all(torch.equal(v, lite0[k]) for k, v in backbone.body.state_dict().items())


def test_weights_of_blocks_with_attention_are_another_network(tmp_path: Path) -> None:
    torch.save({"_blocks.0._se_reduce.weight": torch.ones(1), "_conv_stem.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds another network than tf_efficientnet_lite0: \d+ weights"):
        TimmFeatures(LITE0).load_imagenet(str(tmp_path / "w.pth"))
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no weights \(a list\)"):
        TimmFeatures(LITE0).load_imagenet(str(tmp_path / "list.pth"))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_depthwise_layers_slow_in_bfloat16_stay_in_float32_on_the_cpu(name: str) -> None:
    backbone: nn.Module = BACKBONES[name]()  # type: ignore[assignment]
    for layer in backbone.modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
            continue
        if layer.stride[0] * layer.dilation[0] > 1 or layer.kernel_size[0] == 5:
            x = torch.randn(1, layer.in_channels, 16, 16)
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == torch.float32


@pytest.mark.parametrize(("name", "black"), [("efficientnet_lite0", -1.0), ("efficientnet_b0", -0.485 / 0.229)])
def test_images_reach_a_backbone_on_the_scale_its_weights_know(name: str, black: float) -> None:
    model, seen = tiny(backbone=name), list[Tensor]()
    model.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.features(torch.zeros(1, 3, 64, 64))
    assert seen[0][:, 0].unique().tolist() == pytest.approx([black])


def test_imagenet_weights_are_downloaded_once_and_checked(
    published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = io.BytesIO()
    torch.save(published, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    with Server({f"/small-{digest}.pth": file.getvalue(), "/small-01234567.pth": file.getvalue()}) as server:
        backbone = small()
        backbone.url = f"{server.url}/small-{digest}.pth"
        for _ in range(2):
            backbone.load_imagenet()
        assert len(server.asked(f"/small-{digest}.pth")) == 1
        assert torch.equal(backbone.body.conv_stem.weight, published["conv_stem.weight"])
        backbone.url = f"{server.url}/small-01234567.pth"
        with pytest.raises(ValueError, match="hash"):
            backbone.load_imagenet()
    backbone.url = f"{server.url}/gone-01234567.pth"
    with pytest.raises(ValueError, match=r"01234567\.pth could not be read \("):
        backbone.load_imagenet()


def test_a_file_of_another_network_or_of_none(published: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**published, "conv_stem.weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd\.safetensors holds another network than \w+: 1 weights"):
        small().load_imagenet(str(tmp_path / "odd.safetensors"))
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(ValueError, match=r"text\.pth"):
        small().load_imagenet(str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match="could not be read"):
        small().load_imagenet(str(tmp_path / "missing.pth"))


class Stranger(nn.Module):
    """What a user would write: three strided convolutions that know nothing of this repository."""

    channels = (8, 24, 16)
    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 8, 8)
        self.middle = nn.Conv2d(8, 24, 2, 2)
        self.coarse = nn.Conv2d(24, 16, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x).relu()
        middle = self.middle(fine).relu()
        return [fine, middle, self.coarse(middle).relu()]


def test_a_strangers_backbone_needs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "stranger", Stranger)
    torch.manual_seed(0)
    model = OneHead(ModelConfig(backbone="stranger", **TINY), CLASSES)
    outputs = model.train()(images(2))
    losses = Criterion(LossConfig())(outputs, random_targets(["all", "all"]))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_an_unknown_backbone_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet'.*fast_scnn"):
        OneHead(ModelConfig(backbone="resnet"), CLASSES)


def test_neck_brings_all_levels_to_one_width_and_passes_coarse_features_down() -> None:
    torch.manual_seed(0)
    neck = FPN((4, 6, 8), 16).eval()
    features = [torch.randn(1, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4))]
    maps = neck(features)
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 16), (1, 16, 8, 8), (1, 16, 4, 4)]
    changed = neck([*features[:2], features[2] + 1])
    assert all(not torch.equal(a, b) for a, b in zip(maps, changed))
    changed = neck([features[0] + 1, *features[1:]])
    assert [torch.equal(a, b) for a, b in zip(maps, changed)] == [False, True, True]
