from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from models.boxes import grid_references
from models.locations import CELLS_PER_REFERENCE
from models.matcher import (
    COST_CLASS,
    COST_GIOU,
    COST_L1,
    Match,
    Objects,
    centre_distance,
    match_one_to_many,
    match_one_to_one,
    object_cost,
)
from models.targets import Targets
from tests.models.builders import boxes_in_view, object_targets, random_objects

NOTHING = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def targets_of(*counts: int, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    boxes = [boxes_in_view(n, generator) for n in counts]
    return object_targets(boxes, [torch.randint(0, 3, (n,), generator=generator) for n in counts])


def pairs(match: Match) -> dict[tuple[int, int], tuple[float, ...]]:
    """(image, query) -> box and label of its object."""
    keys = zip(match.image.tolist(), match.query.tolist())
    return {k: (*box, label) for k, box, label in zip(keys, match.boxes.tolist(), match.labels.tolist())}


def one_to_one(outputs: dict[str, Tensor], targets: Targets) -> Match:
    """The match of a single run."""
    (match,) = match_one_to_one([outputs], targets)
    return match


# --- one to one ---


def test_cost_by_hand() -> None:
    outputs = {
        "pred_logits": torch.full((1, 1, 4), -math.log(7)),  # chance 1/8
        "pred_boxes": torch.tensor([[[0.3, 0.5, 0.2, 0.2]]]),
    }
    targets = object_targets([torch.tensor([[0.5, 0.5, 0.2, 0.2]])], [torch.tensor([1])])
    found = object_cost(outputs, Objects.of(targets))
    # Side by side and touching: no overlap, but their hull is no larger than the two.
    assert found.item() == pytest.approx(-COST_CLASS / 8 + COST_L1 * 0.2 - COST_GIOU * 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_match_is_the_cheapest_assignment(seed: int) -> None:
    outputs, targets = random_objects(1, 5, seed=seed), targets_of(3, seed=seed + 10)
    cost = object_cost(outputs, Objects.of(targets))
    best = min(itertools.permutations(range(5), 3), key=lambda queries: sum(cost[o, q] for o, q in enumerate(queries)))
    expected = {(0, q): (*targets.boxes[0][o].tolist(), int(targets.labels[0][o])) for o, q in enumerate(best)}
    assert pairs(one_to_one(outputs, targets)) == expected


def test_permuting_predictions_permutes_the_match() -> None:
    outputs, targets = random_objects(2, 8), targets_of(3, 5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4))
    turned = one_to_one({k: v[:, order] for k, v in outputs.items()}, targets)
    there = Match(turned.image, order[turned.query], turned.boxes, turned.labels)
    assert pairs(there) == pairs(one_to_one(outputs, targets))


def test_every_object_has_one_query_and_no_query_two_objects() -> None:
    targets = targets_of(3, 0, 6)
    match = one_to_one(random_objects(3, 8), targets)
    assert sorted(match.image.tolist()) == [0] * 3 + [2] * 6
    assert len(pairs(match)) == 9
    for b in (0, 2):
        mine = match.boxes[match.image == b]
        assert sorted(mine.tolist()) == sorted(targets.boxes[b].tolist())


def test_an_object_is_matched_with_predictions_of_its_own_image() -> None:
    outputs, targets = random_objects(3, 6), targets_of(2, 0, 3)
    together = pairs(one_to_one(outputs, targets))
    alone = {}
    for b in (0, 2):
        one = object_targets([targets.boxes[b]], [targets.labels[b]])
        found = pairs(one_to_one({k: v[b : b + 1] for k, v in outputs.items()}, one))
        alone |= {(b, query): what for (_, query), what in found.items()}
    assert together == alone


def test_empty_targets_match_nothing() -> None:
    match = one_to_one(random_objects(2, 8), targets_of(0, 0))
    assert (len(match.image), match.query.dtype, match.boxes.shape) == (0, torch.int64, (0, 4))


def test_more_objects_than_queries_leave_some_without() -> None:
    targets = targets_of(7)
    match = one_to_one(random_objects(1, 4), targets)
    assert sorted(match.query.tolist()) == [0, 1, 2, 3]
    assert len({tuple(b) for b in match.boxes.tolist()}) == 4


def test_a_single_query_takes_the_cheapest_object() -> None:
    targets = object_targets([torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.6, 0.6, 0.3, 0.3]])], [torch.tensor([0, 0])])
    outputs = {
        "pred_logits": torch.zeros(1, 1, 3),
        "pred_boxes": torch.tensor([[[0.6, 0.6, 0.25, 0.3]]]),
    }
    assert pairs(one_to_one(outputs, targets)) == {(0, 0): pytest.approx((0.6, 0.6, 0.3, 0.3, 0))}


def test_runs_matched_together_have_the_matches_that_each_has_alone() -> None:
    runs, targets = [random_objects(2, n, seed=n) for n in (4, 9, 2)], targets_of(3, 2)
    together = match_one_to_one(runs, targets)
    assert [pairs(match) for match in together] == [pairs(one_to_one(run, targets)) for run in runs]
    assert [len(match.query) for match in together] == [5, 5, 4]


def test_the_costs_of_all_runs_cross_to_the_cpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crossed: list[tuple[int, ...]] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: (crossed.append(tuple(self.shape)), cpu(self))[1])
    match_one_to_one([random_objects(2, n) for n in (4, 9)], targets_of(3, 2))
    assert crossed == [(5, 13)]


def test_shifted_pairs_count_predictions_from_elsewhere() -> None:
    match = one_to_one(random_objects(1, 6), targets_of(2))
    moved = match.shifted(10)
    assert torch.equal(moved.query, match.query + 10)
    assert torch.equal(moved.boxes, match.boxes)


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(name: str, value: float) -> None:
    outputs = random_objects(2, 8)
    outputs[name].view(-1)[5] = value
    with pytest.raises(FloatingPointError, match=f"^{name} is not finite"):
        one_to_one(outputs, targets_of(1, 1))
    with pytest.raises(FloatingPointError, match=f"^{name} is not finite"):
        match_one_to_many({**outputs, "references": boxes_in_view(8)}, targets_of(1, 1))


# --- one to many ---


def dense(batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Memory tokens of an image of 96 x 96, that predict roughly their references."""
    references = torch.cat([grid_references(n, n, CELLS_PER_REFERENCE, torch.device("cpu")) for n in (6, 3)])
    outputs = random_objects(batch, len(references), seed=seed)
    return {**outputs, "pred_boxes": references + 0.01 * outputs["pred_boxes"], "references": references}


def per_object(match: Match, targets: Targets) -> list[list[int]]:
    """Number of tokens of each object of each image."""
    return [
        [int(((match.image == b) & (match.boxes == box).all(1)).sum()) for box in boxes]
        for b, boxes in enumerate(targets.boxes)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_object_has_tokens_and_no_token_two_objects(seed: int) -> None:
    targets = targets_of(1, 0, 12, 5, seed=seed)
    match = match_one_to_many(dense(4, seed), targets)
    assert len(pairs(match)) == len(match.image)
    counts = per_object(match, targets)
    assert counts[1] == []
    assert all(1 <= n <= 10 for image in counts for n in image)


def test_tiny_objects_have_a_token_of_their_own_even_side_by_side() -> None:
    # Four objects of half a percent of the image, all inside one cell of the map.
    boxes = torch.tensor([[0.50, 0.50], [0.51, 0.50], [0.50, 0.51], [0.51, 0.51]])
    targets = object_targets([torch.cat([boxes, torch.full((4, 2), 0.005)], dim=1)], [torch.tensor([0, 0, 0, 0])])
    match = match_one_to_many(dense(), targets)
    assert per_object(match, targets) == [[1, 1, 1, 1]]
    assert len(set(match.query.tolist())) == 4


def test_many_locations_of_a_batch_are_those_of_its_images() -> None:
    outputs, targets = dense(3, seed=2), targets_of(4, 0, 7, seed=3)
    together, alone = pairs(match_one_to_many(outputs, targets)), {}
    for b in (0, 2):
        one = object_targets([targets.boxes[b]], [targets.labels[b]])
        part = {k: v if k == "references" else v[b : b + 1] for k, v in outputs.items()}
        alone |= {(b, query): what for (_, query), what in pairs(match_one_to_many(part, one)).items()}
    assert together == alone


def test_objects_that_lie_on_each_other_share_the_tokens() -> None:
    box = torch.tensor([[0.5, 0.5, 0.05, 0.05]])
    targets = object_targets([box.expand(2, 4)], [torch.tensor([0, 1])])
    match = match_one_to_many(dense(), targets)
    assert sorted(set(match.labels.tolist())) == [0, 1]
    assert len(set(match.query.tolist())) == len(match.query)


def test_more_objects_than_tokens() -> None:
    outputs = random_objects(1, 2)
    outputs["references"] = outputs["pred_boxes"][0]
    match = match_one_to_many(outputs, targets_of(5))
    assert sorted(match.query.tolist()) == [0, 1]


def hand_made(predicted: list[list[float]]) -> dict[str, Tensor]:
    """Four tokens on a 2 x 2 grid, equal in confidence and class."""
    return {
        "pred_logits": torch.zeros(1, 4, 3),
        "pred_boxes": torch.tensor([predicted]),
        "references": grid_references(2, 2, CELLS_PER_REFERENCE, torch.device("cpu")),
    }


def test_the_cheapest_of_the_near_tokens_are_chosen() -> None:
    target = [0.5, 0.5, 0.8, 0.8]  # its core, 0.3 .. 0.7 widened to one cell, holds all four cell centres
    targets = object_targets([torch.tensor([target])], [torch.tensor([0])])
    far, near = [0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.8, 0.7]
    # IoUs 0.02, 1, 0.875 and 0.02 sum to 1.9: one token, the perfect one.
    match = match_one_to_many(hand_made([far, target, near, far]), targets)
    assert match.query.tolist() == [1]
    # Three good tokens: 1 + 0.875 + 0.875 + 0.02 makes two, and the perfect one is the first of them.
    match = match_one_to_many(hand_made([near, target, near, far]), targets)
    assert len(match.query) == 2
    assert 1 in match.query.tolist()
    assert 3 not in match.query.tolist()
    # Never more than `most`.
    assert match_one_to_many(hand_made([target] * 4), targets, most=3).query.shape == (3,)


def test_a_near_token_beats_a_far_one_with_a_better_box() -> None:
    target = [0.75, 0.75, 0.3, 0.3]
    targets = object_targets([torch.tensor([target])], [torch.tensor([0])])
    match = match_one_to_many(hand_made([target, target, target, [0.7, 0.7, 0.1, 0.1]]), targets, most=1)
    assert match.query.tolist() == [3]


def test_a_contested_token_goes_to_the_cheaper_object() -> None:
    left, right = [0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5]
    targets = object_targets([torch.tensor([left, right])], [torch.tensor([0, 1])])
    match = match_one_to_many(hand_made([left, right, left, right]), targets)
    owner = dict(zip(match.query.tolist(), match.labels.tolist()))
    assert (owner[0], owner[1]) == (0, 1)


def test_centre_distance_by_hand() -> None:
    references = grid_references(4, 4, CELLS_PER_REFERENCE, torch.device("cpu"))  # cells of 0.25
    box = torch.tensor([[0.125, 0.125, 0.2, 0.2]])
    found = centre_distance(references, box).view(4, 4)
    # The core reaches 0.125 to each side (half a cell, more than a quarter of the object).
    assert found[0].tolist() == pytest.approx([0, 0.625, 1.875, 3.125])
    assert found[1, 1] == pytest.approx(0.625)
    large = torch.tensor([[0.5, 0.5, 1.0, 0.8]])  # core 0.25 .. 0.75 by 0.3 .. 0.7
    assert centre_distance(references, large).view(4, 4)[1].tolist() == pytest.approx([0.125, 0, 0, 0.125])


def test_every_location_lies_in_the_core_of_some_cell() -> None:
    references = grid_references(6, 6, CELLS_PER_REFERENCE, torch.device("cpu"))
    boxes = boxes_in_view(200, torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 0.01, 0.01])
    assert (centre_distance(references, boxes).amin(1) == 0).all()
