"""Plans: what is checked when one is made, and the bound on how many are kept."""

from __future__ import annotations

import numpy as np
import pytest

from gradserve.errors import InvalidShape, InvalidType
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.draft import Feed, StepOptions, draft
from gradserve.server.plan import CONSTANT, FEED, PlanCache
from tests.server.build import FIRST, SECOND, explained, fleet, placeholder, plan, zigzag


def test_the_least_recently_used_plan_makes_room() -> None:
    graph, y = zigzag(0)
    made = plan(graph, [y])
    cache = PlanCache(2)
    cache.put("a", made)
    cache.put("b", made)
    assert cache.get("a") is made
    cache.put("c", made)
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)


def test_feeds_are_checked_against_the_graph() -> None:
    graph, y = zigzag(0)
    for feed, error in (
        (Feed("x:0", np.dtype(np.float64), (4,)), InvalidType),
        (Feed("x:0", np.dtype(np.float32), (5,)), InvalidShape),
    ):
        with pytest.raises(error, match="x:0"):
            draft(graph, [feed], [y.name], [], StepOptions(), fleet(1))


def test_feeds_and_constants_are_fetched_without_a_worker() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        constant = raw.Exp(graph.constant(1.0))
    made = plan(graph, [x, constant])
    assert made.segments == ()
    assert [source.segment for source in made.fetches] == [FEED, CONSTANT]


def test_a_plan_tells_what_it_costs() -> None:
    graph, y = zigzag(1)
    details = explained(graph, [y])
    assert details.flops == 2 * 4 * 20
    assert details.crossing_bytes == 16
    assert details.simplified == 1


def test_a_size_that_is_not_known_is_not_guessed() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(FIRST):
            y = raw.Unique.outputs(placeholder(shape=(None,)))[0]
        with graph.device(SECOND):
            z = raw.Tanh(y)
    report = explained(graph, [z])
    assert [crossing.bytes for crossing in report.crossings] == [-1]
    assert report.crossing_bytes == 0
