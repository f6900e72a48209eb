from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.boxes import grid_references
from models.criterion import Criterion, LossConfig
from models.denoising import denoising_boxes
from models.head import CELLS_PER_REFERENCE, CONF_PRIOR, Queries, nearest_places, peaks_first, pick
from models.onehead import MEAN, STD, ModelConfig, OneHead, count_parameters
from tests.models.builders import CLASSES, SIZE, boxes_in_view, images, random_targets, tensors, tiny

VOC = {"det": [f"d{i}" for i in range(20)], "seg": [f"s{i}" for i in range(21)], "cls": [f"c{i}" for i in range(10)]}


@pytest.fixture(scope="module")
def model() -> OneHead:
    return tiny()


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def deployed_loss(outputs: dict[str, Any]) -> Tensor:
    """Some scalar of everything that is deployed."""
    return sum(outputs[k].sin().sum() for k in ("pred_logits", "pred_conf", "pred_boxes", "pred_masks", "pred_class"))


# --- size and structure ---


def test_default_model_has_less_than_five_million_parameters() -> None:
    model = OneHead(ModelConfig(), VOC)
    assert len(model.head.layers) == 3
    assert count_parameters(model) < 5_000_000


def test_nothing_is_learnt_after_the_neck_but_layers_projection_and_class_queries(model: OneHead) -> None:
    assert [name for name, _ in model.named_children()] == ["backbone", "neck", "head"]
    assert [name for name, _ in model.named_parameters(recurse=False)] == []
    assert [name for name, _ in model.head.named_children()] == ["layers", "projection"]
    assert [name for name, _ in model.head.named_parameters(recurse=False)] == ["class_queries"]
    assert type(model.head.projection) is nn.Linear
    assert {name.split(".")[2] for name, _ in model.head.layers.named_parameters(prefix="layers")} == {
        "norms",
        "scales",
        "self_attention",
        "cross_attention",
        "feed_forward",
    }


def test_projection_is_one_linear_read_in_row_blocks(model: OneHead) -> None:
    head, dim = model.head, model.config.dim
    sizes = {"box": 4, "conf": 1, "det": 3, "cls": 4, "mask": dim}
    assert head.projection.out_features == sum(sizes.values())
    tokens = torch.randn(2, 5, dim)
    everything = head.projection(F.layer_norm(tokens, (dim,))).split(list(sizes.values()), dim=-1)
    for (name, size), expected in zip(sizes.items(), everything):
        (found,) = head.project(tokens, name)
        assert found.shape == (2, 5, size)
        torch.testing.assert_close(found, expected)
    for found, expected in zip(head.project(tokens, "box", "conf", "det"), everything):
        torch.testing.assert_close(found, expected)


def test_untrained_confidence_is_the_prior() -> None:
    torch.manual_seed(0)
    model = OneHead(ModelConfig(), VOC)
    assert model.head.project(torch.zeros(1, model.config.dim), "conf")[0].item() == pytest.approx(CONF_PRIOR)
    assert torch.sigmoid(torch.tensor(CONF_PRIOR)).item() == pytest.approx(0.01, abs=1e-4)


# --- one forward pass gives everything ---


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (96, 128)])
def test_all_three_outputs_in_one_forward(layers: int, training: bool, size: tuple[int, int]) -> None:
    model = tiny(layers=layers).train(training)
    height, width = size
    outputs = model(images(2, height, width))
    n, places = model.config.queries, sum(height // s * (width // s) for s in (8, 16, 32))
    shapes = {
        "pred_logits": (2, n, 3),
        "pred_conf": (2, n),
        "pred_boxes": (2, n, 4),
        "pred_masks": (2, 5, height // 8, width // 8),
        "pred_class": (2, 4),
    }
    assert {k: tuple(outputs[k].shape) for k in shapes} == shapes
    assert len(outputs["aux_outputs"]) == layers
    assert set(outputs["aux_outputs"][0]) == {"pred_masks", "pred_class"}  # before any layer there are no queries
    for aux in outputs["aux_outputs"]:
        assert {k: tuple(v.shape) for k, v in aux.items()} == {k: shapes[k] for k in aux}
    assert all(set(aux) == set(shapes) for aux in outputs["aux_outputs"][1:])
    assert tuple(outputs["dense"]["pred_conf"].shape) == (2, places)
    assert tuple(outputs["dense"]["pred_boxes"].shape) == (2, places, 4)
    assert tuple(outputs["dense"]["references"].shape) == (places, 4)
    assert "extra_outputs" not in outputs
    assert all(t.isfinite().all() for t in tensors(outputs).values())


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_other_numbers_of_layers_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match=f"a head has 2 or 3 layers, not {layers}: set model.layers to 2 or 3"):
        OneHead(ModelConfig(layers=layers), CLASSES)


@pytest.mark.parametrize("size", [(96, 100), (90, 96)])
def test_sides_that_do_not_fit_are_refused(model: OneHead, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 32, not \({size[0]}, {size[1]}\): resize or pad"):
        model(images(1, *size))


def test_a_width_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.dim 36 must be a multiple of 8 and of model.heads 6"):
        OneHead(ModelConfig(dim=36, heads=6), CLASSES)


def test_images_are_normalised_inside(model: OneHead) -> None:
    x = images(2)
    seen: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    handle.remove()
    expected = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(seen[0], expected)
    assert not {"mean", "std"} & set(model.state_dict())  # constants do not belong to the weights


@torch.no_grad()
def test_an_images_outputs_do_not_depend_on_its_neighbours(model: OneHead) -> None:
    x = images(4, seed=3)
    together = tensors(model(x))
    for i in range(4):
        for name, value in tensors(model(x[i : i + 1])).items():
            expected = together[name] if name == "dense.references" else together[name][i : i + 1]
            torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# --- object queries ---


@torch.no_grad()
def test_selection_is_the_most_confident_peaks_with_their_boxes(model: OneHead) -> None:
    outputs = model(images(2))
    dense, queries = outputs["dense"], outputs["queries"]
    rank = peaks_first(dense["pred_conf"], outputs["maps"])
    for b in range(2):
        best = rank[b].argsort(descending=True)[: model.config.queries]
        assert set(queries.index[b].tolist()) == set(best.tolist())
        assert int(dense["pred_conf"][b].argmax()) in best
        assert torch.equal(queries.boxes[b], dense["pred_boxes"][b][queries.index[b]])


@torch.no_grad()
def test_feeding_back_the_own_selection_changes_nothing(model: OneHead) -> None:
    x = images(2)
    first = model(x)
    second = model(x, queries=first["queries"])
    for (name, a), b in zip(tensors(first).items(), tensors(second).values()):
        assert torch.equal(a, b), name


@torch.no_grad()
def test_given_queries_are_followed_index_by_index(model: OneHead) -> None:
    x = images(2)
    own = model(x)["queries"]
    order = torch.randperm(own.index.shape[1], generator=torch.Generator().manual_seed(1))
    straight = model(x, queries=own)
    turned = model(x, queries=Queries(own.index[:, order], own.boxes[:, order]))
    for name in ("pred_boxes", "pred_conf", "pred_logits"):
        torch.testing.assert_close(turned[name], straight[name][:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned["pred_masks"], straight["pred_masks"], atol=1e-5, rtol=1e-4)
    assert torch.equal(turned["queries"].index, own.index[:, order])
    other = Queries(own.index.roll(1, dims=1), own.boxes)  # same places, other contents
    assert not torch.allclose(model(x, queries=other)["pred_conf"], straight["pred_conf"])


def test_each_layer_looks_around_the_box_found_before_it_without_gradient(model: OneHead) -> None:
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1])) for layer in model.head.layers]
    outputs = model(images(1))
    for handle in handles:
        handle.remove()
    n = model.config.queries
    expected = [outputs["queries"].boxes, *(a["pred_boxes"] for a in outputs["aux_outputs"][1:])]
    for box, before in zip(seen, expected):
        assert torch.equal(box[:, 1 : n + 1], before)
        assert not box.requires_grad
        # The class token and the class queries look at the whole image.
        assert (torch.cat([box[:, :1], box[:, n + 1 :]], dim=1) == torch.tensor([0.5, 0.5, 1, 1])).all()


@torch.no_grad()
def test_boxes_are_relative_to_the_cell_of_their_token(model: OneHead) -> None:
    head = copy.deepcopy(model.head)
    head.projection.weight[:4] = 0
    head.projection.bias[:4] = 0
    places = [13, 144 + 7, 144 + 36 + 4]
    queries = Queries(torch.tensor([places]), boxes_in_view(3)[None])
    outputs = head(model.features(images(1)), queries)
    references = outputs["dense"]["references"]
    cells = CELLS_PER_REFERENCE
    assert references[places].tolist() == [
        pytest.approx([1.5 / 12, 1.5 / 12, cells / 12, cells / 12]),  # stride 8: 12 x 12 cells, row 1, column 1
        pytest.approx([1.5 / 6, 1.5 / 6, cells / 6, cells / 6]),  # stride 16: 6 x 6 cells
        pytest.approx([1.5 / 3, 1.5 / 3, cells / 3, cells / 3]),  # stride 32: 3 x 3 cells
    ]
    assert torch.equal(outputs["dense"]["pred_boxes"][0], references)
    assert torch.equal(outputs["pred_boxes"][0], references[places])


def test_more_queries_than_places_are_refused() -> None:
    # 96 x 96: 12 x 12 places at stride 8, 6 x 6 at stride 16 and 3 x 3 at stride 32.
    with pytest.raises(
        ValueError, match=r"model.queries 190 is more than the 189 places .* side 96 .* raise data.size"
    ):
        tiny(queries=190)
    with torch.no_grad():
        assert tiny(queries=189)(images(1))["pred_boxes"].shape == (1, 189, 4)


def test_pick_gathers_rows_of_each_image() -> None:
    values = torch.arange(12).view(2, 3, 2)
    found = pick(values, torch.tensor([[2, 0], [1, 1]]))
    assert found.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_nearest_place_agrees_in_place_and_size() -> None:
    # Four by four cells of 0.25, references 0.5 wide, then two by two, references 1 wide.
    boxes = torch.tensor([[[0.9, 0.1, 0.5, 0.5], [0.9, 0.1, 0.9, 1.0], [0.1, 0.6, 0.3, 0.4], [-0.2, 1.3, 0.5, 0.5]]])
    assert nearest_places(boxes, [(4, 4), (2, 2)]).tolist() == [[3, 16 + 1, 8, 12]]


@pytest.mark.parametrize("seed", range(3))
def test_no_place_is_nearer_than_the_nearest(seed: int) -> None:
    boxes = boxes_in_view(200, torch.Generator().manual_seed(seed))
    sizes = [(8, 12), (4, 6), (2, 3)]
    references = torch.cat([grid_references(h, w, CELLS_PER_REFERENCE, boxes.device) for h, w in sizes])
    shift = ((boxes[:, None, :2] - references[None, :, :2]) / references[None, :, 2:]).abs().sum(-1)
    zoom = (boxes[:, None, 2:] / references[None, :, 2:]).log().sum(-1).abs()
    assert nearest_places(boxes[None], sizes)[0].tolist() == (shift + zoom / 2).argmin(1).tolist()


# --- training-only runs ---


def extra(model: OneHead, batch: int) -> dict[str, Any]:
    boxes, _ = denoising_boxes(random_targets(["det"] * batch), model.config.queries, 1)
    return {"groups": 2, "denoise": boxes}


@torch.no_grad()
def test_training_only_runs_change_nothing_deployed(model: OneHead) -> None:
    x = images(2)
    plain, more = model(x), model(x, **extra(model, 2))
    assert [tuple(o["pred_boxes"].shape) for o in more["extra_outputs"]] == [(2, 36, 4)] * 3
    before, after = tensors(plain), tensors(more)
    assert len(before) == 5 + 2 + 2 * 5 + 4 + 2
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_training_only_runs_change_no_gradient_of_what_is_deployed(model: OneHead) -> None:
    found = []
    for arguments in ({}, extra(model, 2)):
        fresh = copy.deepcopy(model)
        deployed_loss(fresh(images(2), **arguments)).backward()
        found.append(gradients(fresh))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@torch.no_grad()
def test_training_only_runs_do_not_see_each_other(model: OneHead) -> None:
    x, n = images(2), model.config.queries
    arguments = extra(model, 2)
    both = model(x, **arguments)["extra_outputs"]
    only_noise = model(x, denoise=arguments["denoise"])["extra_outputs"]
    only_groups = model(x, groups=2)["extra_outputs"]
    for a, noise, groups in zip(both, only_noise, only_groups):
        for name in a:
            torch.testing.assert_close(a[name][:, 2 * n :], noise[name], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(a[name][:, : 2 * n], groups[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_group_queries_share_out_a_wider_selection(model: OneHead) -> None:
    maps = model.features(images(2))
    memory = model.head.memorise(maps)
    dense = model.head.read_objects(memory.places_BPD, memory.boxes_P4)
    rank = peaks_first(dense["pred_conf"], maps)
    queries = model.head.extra_queries(dense, rank, memory, 2, None)
    assert queries is not None
    assert queries.groups == 2
    assert queries.index.shape == (2, 24)
    for b in range(2):
        order = rank[b].argsort(descending=True)[:24].tolist()
        # Taken in turns, so that both runs are equally good.
        assert queries.index[b].tolist() == order[0::2] + order[1::2]


def test_queries_go_to_peaks_first_so_that_one_large_object_cannot_take_them_all() -> None:
    maps = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    conf = torch.tensor([[4.0, 3.9, 0, 0, 3.8, 3.7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1.0, 2.0, 0.5, 0.4, 0.3]])
    order = peaks_first(conf, maps)[0].argsort(descending=True, stable=True).tolist()
    assert order[:3] == [0, 16, 15]  # the corner's peak, the coarse level's, the lone far one
    neighbours = order[order.index(1) :]
    assert neighbours[:3] == [1, 4, 5]  # of the first peak, behind every peak however unsure
    assert 3 not in neighbours
    assert sorted(order) == list(range(20))


@torch.no_grad()
def test_groups_share_places_where_there_are_too_few() -> None:
    model = tiny(queries=100)
    maps = model.features(images(1))
    memory = model.head.memorise(maps)
    dense = model.head.read_objects(memory.places_BPD, memory.boxes_P4)
    queries = model.head.extra_queries(dense, dense["pred_conf"], memory, 2, None)
    assert queries is not None
    runs = queries.index[0].view(2, 100).tolist()
    assert [len(set(run)) for run in runs] == [100, 100]  # each place once in a run
    assert set(runs[0]) | set(runs[1]) == set(range(189))  # and none of the 189 left out


# --- gradients ---


def test_every_parameter_learns_from_the_full_loss(model: OneHead) -> None:
    # In eval mode: a batch norm in training takes out a constant shift, so that the bias before it has no effect.
    model = copy.deepcopy(model)
    targets = random_targets(["all", "all"])
    total(Criterion(LossConfig())(model(images(2)), targets)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    for block, rows in zip(model.head.rows, model.head.projection.weight.grad.split(list(model.head.rows.values()))):
        assert rows.any(dim=1).all(), f"a row of the block {block} learns nothing"


@pytest.mark.parametrize(
    ("task", "learning"),
    [("seg", {"mask"}), ("cls", {"cls"}), ("det", {"box", "conf", "det"})],
)
def test_a_task_teaches_only_its_own_rows(model: OneHead, task: str, learning: set[str]) -> None:
    model = copy.deepcopy(model).train()
    criterion = Criterion(LossConfig(groups=2, denoise=1))
    targets = random_targets([task, task])
    boxes, match = denoising_boxes(targets, model.config.queries, 1)
    total(criterion(model(images(2), groups=2, denoise=boxes), targets, match)).backward()
    linear, sizes = model.head.projection, list(model.head.rows.values())
    found = {
        name
        for name, weight, bias in zip(model.head.rows, linear.weight.grad.split(sizes), linear.bias.grad.split(sizes))
        if weight.any() or bias.any()
    }
    assert found == learning
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    assert all(g.isfinite().all() for g in gradients(model).values())


# --- stage 0: some of many classes, and rows taken over ---


@torch.no_grad()
def test_asking_all_classes_in_order_is_the_default(model: OneHead) -> None:
    maps = model.features(images(2))
    every = torch.arange(len(CLASSES["seg"])).expand(2, -1)
    asked, default = model.head(maps, slots=every), model.head(maps)
    assert torch.equal(asked["pred_masks"], default["pred_masks"])
    assert torch.equal(asked["pred_boxes"], default["pred_boxes"])


def test_each_image_can_be_asked_for_classes_of_its_own() -> None:
    model = tiny()
    slots = torch.tensor([[0, 3], [4, 0]])
    outputs = model.head(model.features(images(2)), slots=slots)
    assert outputs["pred_masks"].shape[:2] == (2, 2)
    start = outputs["aux_outputs"][0]["pred_masks"]  # before any layer a class query is on its own
    whole = model.head(model.features(images(2)))["aux_outputs"][0]["pred_masks"]
    for image in range(2):
        assert torch.allclose(start[image], whole[image, slots[image]], atol=1e-5)
    outputs["pred_masks"][0].sum().backward()
    gradient = model.head.class_queries.grad
    assert gradient is not None
    assert gradient.abs().sum(1).gt(0).tolist() == [True, False, False, True, False]


def test_copied_rows_read_the_same() -> None:
    torch.manual_seed(0)
    head = OneHead(ModelConfig(dim=32, heads=2, hidden=64, queries=12), {**CLASSES, "cls": CLASSES["det"]}, SIZE).head
    before = head.projection.weight.clone()
    head.copy_rows("det", "cls")
    tokens = torch.randn(5, 32)
    (det,), (cls,) = head.project(tokens, "det"), head.project(tokens, "cls")
    assert torch.equal(det, cls)
    changed = (head.projection.weight != before).any(1).nonzero()[:, 0].tolist()
    assert changed == list(range(*head.block("cls").indices(len(before))))


def test_a_head_takes_over_what_does_not_depend_on_classes() -> None:
    theirs, own = tiny(seed=3), tiny(seed=4)
    fresh = own.head.projection.weight.clone()
    assert own.head.adopt_rows(theirs.head, ["det"]) == ["seg", "cls"]
    for block, taken in (("box", True), ("conf", True), ("det", True), ("mask", True), ("cls", False)):
        rows = own.head.block(block)
        expected = theirs.head.projection.weight if taken else fresh
        assert torch.equal(own.head.projection.weight[rows], expected[rows]), block
    learnt, drawn = theirs.head.class_queries, own.head.class_queries
    assert (drawn.mean() - learnt.mean()).abs() < 4 * learnt.std() / learnt.numel() ** 0.5
    assert not torch.equal(drawn, learnt)
    assert own.head.adopt_rows(theirs.head, ["seg", "det", "cls"]) == []
    assert torch.equal(own.head.class_queries, learnt)
