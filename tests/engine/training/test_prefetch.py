"""Batches made ahead are the same batches, and a fault in making them is raised where they are taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from engine.training.prefetch import halve_threads, prefetch


@pytest.mark.parametrize("count", [0, 1, 3])
def test_all_items_come_in_order(count: int) -> None:
    assert list(prefetch(iter(range(20)), count)) == list(range(20))


def test_items_are_made_in_a_thread_while_others_are_used() -> None:
    made: list[str] = []

    def items() -> Iterator[int]:
        for i in range(3):
            made.append(threading.current_thread().name)
            yield i

    found = prefetch(items(), 2)
    assert next(found) == 0
    for _ in range(100):
        if len(made) == 3:
            break
        time.sleep(0.05)
    assert len(made) == 3  # without having been asked for
    assert threading.current_thread().name not in made
    assert list(found) == [1, 2]


def test_a_fault_is_raised_where_the_item_is_taken() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    found = prefetch(items(), 2)
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_the_thread_ends_when_the_generator_is_closed() -> None:
    before = threading.active_count()
    found = prefetch(iter(range(10**9)), 2)
    assert next(found) == 0
    found.close()
    assert threading.active_count() == before


def test_threads_are_given_back() -> None:
    threads = torch.get_num_threads()
    with halve_threads(torch.device("cpu")):
        assert torch.get_num_threads() == max(1, threads // 2)
    assert torch.get_num_threads() == threads
