"""The number of rounds of loops whose counters are compared with bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.workers.engines.xla_rounds import Counter, Rounds, count, counters

UNKNOWN = Rounds(None, None)


def found(condition: Callable[..., Any], body: Callable[..., Any], *starts: int | None) -> Rounds:
    """The rounds of a loop over integers; None for a first value that is not known."""
    with Graph().as_default():
        inputs = [raw.Placeholder(dtype="int32", shape=()) for _ in starts]
        outputs = [y if isinstance(y, Tensor) else raw.Identity(y) for y in body(*inputs)]
        known = [None if start is None else np.array(start, np.int32) for start in starts]
        return count(condition(*inputs), inputs, counters(inputs, outputs, known))


def actual(condition: Callable[[int], bool], start: int, step: int) -> int:
    rounds = 0
    while condition(start):
        start, rounds = start + step, rounds + 1
    return rounds


@pytest.mark.parametrize("start", [-3, 0, 7])
@pytest.mark.parametrize("bound", [-8, 0, 7, 10])
@pytest.mark.parametrize("step", [1, 3])
def test_every_comparison_counts(start: int, bound: int, step: int) -> None:
    up = lambda i: [i + step]
    down = lambda i: [raw.Sub(i, np.int32(step))]
    less, least = actual(lambda i: i < bound, start, step), actual(lambda i: i <= bound, start, step)
    more, most = actual(lambda i: i > bound, start, -step), actual(lambda i: i >= bound, start, -step)
    n = np.int32(bound)
    assert found(lambda i: raw.Less(i, n), up, start) == Rounds(less, less)
    assert found(lambda i: raw.Greater(n, i), up, start) == Rounds(less, less)
    assert found(lambda i: raw.LessEqual(i, n), up, start) == Rounds(least, least)
    assert found(lambda i: raw.GreaterEqual(n, i), up, start) == Rounds(least, least)
    assert found(lambda i: raw.Greater(i, n), down, start) == Rounds(more, more)
    assert found(lambda i: raw.Less(n, i), down, start) == Rounds(more, more)
    assert found(lambda i: raw.GreaterEqual(i, n), down, start) == Rounds(most, most)
    assert found(lambda i: raw.LessEqual(n, i), down, start) == Rounds(most, most)


def test_the_first_of_several_conditions_that_fails_ends_the_loop() -> None:
    both = lambda i, j: raw.LogicalAnd(raw.Less(i, np.int32(9)), raw.Identity(raw.Greater(j, np.int32(0))))
    assert found(both, lambda i, j: [i + 2, j + (-1)], 1, 3) == Rounds(3, 3)


def test_a_condition_on_something_else_leaves_a_bound() -> None:
    both = lambda i, j: raw.LogicalAnd(raw.Less(i, np.int32(9)), raw.Less(j, np.int32(0)))
    assert found(both, lambda i, j: [i + 1, j * 2], 1, 3) == Rounds(None, 8)


def test_a_step_may_be_a_variable_that_stays_the_same() -> None:
    assert found(lambda i, j: raw.Less(i, np.int32(9)), lambda i, j: [i + j, j], 0, 2) == Rounds(5, 5)
    assert found(lambda i, j: raw.Less(i, np.int32(9)), lambda i, j: [i + j, j + 0], 0, 2) == UNKNOWN
    assert found(lambda i, j: raw.Less(i, np.int32(9)), lambda i, j: [i + j, j], 0, None) == UNKNOWN


def test_a_condition_that_always_holds_counts_for_nothing() -> None:
    always = lambda i: raw.LogicalAnd(np.array(True), raw.Less(i, np.int32(4)))
    assert found(always, lambda i: [i + 1], 0) == Rounds(4, 4)
    assert found(lambda i: raw.Identity(np.array(True)), lambda i: [i + 1], 0) == UNKNOWN


@pytest.mark.parametrize(
    "body", [lambda i: [i * 2], lambda i: [raw.Sub(np.int32(1), i)], lambda i: [i + 0], lambda i: [i + (-1)]]
)
def test_what_does_not_come_nearer_is_not_counted(body: Callable[..., Any]) -> None:
    assert found(lambda i: raw.Less(i, np.int32(4)), body, 1) == UNKNOWN


def test_a_counter_has_a_value_and_a_range() -> None:
    counter = Counter(5, -2)
    assert counter.after(3) == -1
    assert counter.range(1, 3) == (-1, 3)
