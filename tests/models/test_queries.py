"""Which object queries there are, what they look at, and that training-only ones stay apart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.boxes import grid_references
from models.denoising import denoising_boxes
from models.head import Queries, pick
from models.locations import CELLS_PER_REFERENCE, nearest_locations, peak_scores
from models.onehead import OneHead
from tests.models.builders import boxes_in_view, images, random_targets, tensors, tiny


@pytest.fixture(scope="module")
def model() -> OneHead:
    return tiny()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def deployed_loss(outputs: dict[str, Any]) -> Tensor:
    """Some scalar of everything that is deployed."""
    return sum(outputs[k].sin().sum() for k in ("pred_logits", "pred_boxes", "pred_masks", "pred_class"))


# --- object queries ---


@torch.no_grad()
def test_selection_is_the_most_confident_peaks_with_their_boxes(model: OneHead) -> None:
    outputs = model(images(2))
    dense, queries = outputs["dense"], outputs["queries"]
    scores = peak_scores(dense["pred_logits"], outputs["maps"])
    for b in range(2):
        best = scores[b].argsort(descending=True)[: model.config.queries]
        assert set(queries.index[b].tolist()) == set(best.tolist())
        assert int(dense["pred_logits"][b].amax(-1).argmax()) in best
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
    for name in ("pred_boxes", "pred_logits"):
        torch.testing.assert_close(turned[name], straight[name][:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turned["pred_masks"], straight["pred_masks"], atol=1e-5, rtol=1e-4)
    assert torch.equal(turned["queries"].index, own.index[:, order])
    other = Queries(own.index.roll(1, dims=1), own.boxes)  # same locations, other contents
    assert not torch.allclose(model(x, queries=other)["pred_logits"], straight["pred_logits"])


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
    locations = [13, 144 + 7, 144 + 36 + 4]
    queries = Queries(torch.tensor([locations]), boxes_in_view(3)[None])
    outputs = head(model.features(images(1)), queries)
    references = outputs["dense"]["references"]
    cells = CELLS_PER_REFERENCE
    assert references[locations].tolist() == [
        pytest.approx([1.5 / 12, 1.5 / 12, cells / 12, cells / 12]),  # stride 8: 12 x 12 cells, row 1, column 1
        pytest.approx([1.5 / 6, 1.5 / 6, cells / 6, cells / 6]),  # stride 16: 6 x 6 cells
        pytest.approx([1.5 / 3, 1.5 / 3, cells / 3, cells / 3]),  # stride 32: 3 x 3 cells
    ]
    assert torch.equal(outputs["dense"]["pred_boxes"][0], references)
    assert torch.equal(outputs["pred_boxes"][0], references[locations])


def test_more_queries_than_locations_are_refused() -> None:
    # 96 x 96: 12 x 12 locations at stride 8, 6 x 6 at stride 16 and 3 x 3 at stride 32.
    with pytest.raises(
        ValueError, match=r"model.queries 190 is more than the 189 locations .* side 96 .* raise data.size"
    ):
        tiny(queries=190)
    with torch.no_grad():
        assert tiny(queries=189)(images(1))["pred_boxes"].shape == (1, 189, 4)


def test_pick_gathers_rows_of_each_image() -> None:
    values = torch.arange(12).view(2, 3, 2)
    found = pick(values, torch.tensor([[2, 0], [1, 1]]))
    assert found.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_the_nearest_location_agrees_in_position_and_size() -> None:
    # Four by four cells of 0.25, references 0.5 wide, then two by two, references 1 wide.
    boxes = torch.tensor([[[0.9, 0.1, 0.5, 0.5], [0.9, 0.1, 0.9, 1.0], [0.1, 0.6, 0.3, 0.4], [-0.2, 1.3, 0.5, 0.5]]])
    assert nearest_locations(boxes, [(4, 4), (2, 2)]).tolist() == [[3, 16 + 1, 8, 12]]


@pytest.mark.parametrize("seed", range(3))
def test_no_location_is_nearer_than_the_nearest(seed: int) -> None:
    boxes = boxes_in_view(200, torch.Generator().manual_seed(seed))
    sizes = [(8, 12), (4, 6), (2, 3)]
    references = torch.cat([grid_references(h, w, CELLS_PER_REFERENCE, boxes.device) for h, w in sizes])
    shift = ((boxes[:, None, :2] - references[None, :, :2]) / references[None, :, 2:]).abs().sum(-1)
    zoom = (boxes[:, None, 2:] / references[None, :, 2:]).log().sum(-1).abs()
    assert nearest_locations(boxes[None], sizes)[0].tolist() == (shift + zoom / 2).argmin(1).tolist()


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
    assert len(before) == 4 + 2 + 2 * 4 + 3 + 2
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
    memory = model.head.build_memory(maps)
    dense = model.head.read_objects(memory.locations_BPD, memory.boxes_P4)
    scores = peak_scores(dense["pred_logits"], maps)
    queries = model.head.extra_queries(dense, scores, [], 2, None)
    assert queries is not None
    assert queries.groups == 2
    assert queries.index.shape == (2, 24)
    for b in range(2):
        order = scores[b].argsort(descending=True)[:24].tolist()
        # Taken in turns, so that both runs are equally good.
        assert queries.index[b].tolist() == order[0::2] + order[1::2]


def test_queries_go_to_peaks_first_so_that_one_large_object_cannot_take_them_all() -> None:
    maps = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    conf = torch.tensor([[4.0, 3.9, 0, 0, 3.8, 3.7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1.0, 2.0, 0.5, 0.4, 0.3]])
    order = peak_scores(conf[..., None], maps)[0].argsort(descending=True, stable=True).tolist()
    assert order[:3] == [0, 16, 15]  # the corner's peak, the coarse level's, the lone far one
    neighbours = order[order.index(1) :]
    assert neighbours[:3] == [1, 4, 5]  # of the first peak, behind every peak however unsure
    assert 3 not in neighbours
    assert sorted(order) == list(range(20))


@torch.no_grad()
def test_groups_share_locations_where_there_are_too_few() -> None:
    model = tiny(queries=100)
    maps = model.features(images(1))
    memory = model.head.build_memory(maps)
    dense = model.head.read_objects(memory.locations_BPD, memory.boxes_P4)
    queries = model.head.extra_queries(dense, dense["pred_logits"].amax(-1), [], 2, None)
    assert queries is not None
    runs = queries.index[0].view(2, 100).tolist()
    assert [len(set(run)) for run in runs] == [100, 100]  # each location once in a run
    assert set(runs[0]) | set(runs[1]) == set(range(189))  # and none of the 189 left out
