"""Matching a teacher: what is told already costs nothing, and the gradient reaches every map."""

from __future__ import annotations

import pytest
import torch

from models.feature_distillation import FeatureDistillation, pooled_maps, standardised
from models.public_teacher import PublicTeacher, TeacherOutputs

STUDENT, TEACHER = (4, 6, 8), (3, 5, 7)


def maps(channels: tuple[int, ...], side: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, c, side // s, side // s, generator=generator) for c, s in zip(channels, (8, 16, 32))]


def teacher_outputs(side: int = 64) -> TeacherOutputs:
    generator = torch.Generator().manual_seed(9)
    fine, middle, deep = maps(TEACHER, side, 1)
    pooled, logits = torch.randn(4, 10, generator=generator), torch.randn(4, 20, generator=generator)
    return TeacherOutputs(fine, middle, deep, pooled, logits)


def test_an_unpredicted_map_misses_all_of_the_variance() -> None:
    distillation = FeatureDistillation(STUDENT, TEACHER, 10, 20)
    for layer in (*distillation.level, distillation.semantic):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    losses = distillation(maps(STUDENT, 64, 2), teacher_outputs())
    for name, cells in (("map8", 256), ("map16", 64), ("map32", 16)):  # deviations are unbiased
        assert losses[name].item() == pytest.approx((cells - 1) / cells, rel=1e-3)


def test_a_map_that_determines_the_teacher_s_has_no_loss() -> None:
    outputs = teacher_outputs()
    distillation = FeatureDistillation(TEACHER, TEACHER, 10, 20)
    for layer, target in zip(distillation.level, outputs.maps):
        mean, std = target.mean((0, 2, 3)), target.std((0, 2, 3))
        layer.weight.data = torch.diag(1 / std)[:, :, None, None]
        layer.bias.data = -mean / std
    losses = distillation(list(outputs.maps), outputs)
    assert max(losses[name].item() for name in ("map8", "map16", "map32")) < 1e-6


def test_the_values_of_pooled_features_and_logits() -> None:
    outputs = teacher_outputs()
    distillation = FeatureDistillation(STUDENT, TEACHER, 10, 20)
    student = maps(STUDENT, 64, 2)
    losses = distillation(student, outputs)
    pooled = pooled_maps(student)
    assert pooled.shape == (4, 18)
    cosine = torch.cosine_similarity(distillation.pooled(pooled), outputs.pooled)
    assert losses["pooled"].item() == pytest.approx(2 * (1 - cosine.mean().item()), rel=1e-5)
    p, q = outputs.logits.softmax(1), distillation.logits(pooled).softmax(1)
    assert losses["logits"].item() == pytest.approx(0.5 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-4)


def test_a_teacher_may_look_at_larger_views_and_on_another_scale() -> None:
    distillation, student = FeatureDistillation(STUDENT, TEACHER, 10, 20), maps(STUDENT, 64, 2)
    larger = teacher_outputs(96)
    assert all(torch.isfinite(v) for v in distillation(student, larger).values())
    scaled = larger._replace(deep=100 * larger.deep + 3)
    assert distillation(student, scaled)["map32"].item() == pytest.approx(
        distillation(student, larger)["map32"].item(), rel=1e-3
    )


def test_every_term_teaches_its_map_and_the_finest_one_learns_the_semantic_maps() -> None:
    student = [m.requires_grad_(True) for m in maps(STUDENT, 64, 2)]
    losses = FeatureDistillation(STUDENT, TEACHER, 10, 20)(student, teacher_outputs())
    reached = {
        name: [g is not None and bool(g.abs().sum() > 0) for g in gradients]
        for name, loss in losses.items()
        for gradients in [torch.autograd.grad(loss, student, retain_graph=True, allow_unused=True)]
    }
    assert reached == {
        "map8": [True, False, False],
        "map16": [False, True, False],
        "map32": [False, False, True],
        "map8_semantic": [True, False, False],
        "pooled": [True, True, True],
        "logits": [True, True, True],
    }


def test_standardised_maps() -> None:
    found = standardised(5 + 3 * torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)


def test_a_public_network_gives_maps_features_and_logits_without_gradients() -> None:
    teacher = PublicTeacher("resnet18")
    images = torch.rand(2, 3, 64, 64)
    outputs = teacher(images)
    assert [tuple(m.shape) for m in outputs] == [(2, 128, 8, 8), (2, 256, 4, 4), (2, 512, 2, 2), (2, 512), (2, 1000)]
    assert teacher.channels == (128, 256, 512)
    assert not any(t.requires_grad for t in outputs)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # ImageNet's
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(outputs.logits, teacher.body((images - mean) / std))


@pytest.mark.parametrize(
    ("name", "sentence"), [("no_such_net", "timm knows no"), ("vit_tiny_patch16_224", "no maps at")]
)
def test_a_network_that_cannot_teach_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PublicTeacher(name)
