"""What is left of a graph when a request is simplified."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.server.simplify import simplify
from tests.server.build import placeholder


def test_only_what_is_fetched_runs() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        y, _ = raw.Tanh(x), raw.Exp(x)
    assert [node.name for node in simplify([x], [y], []).nodes] == ["Tanh"]


def test_equal_nodes_are_merged() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        y = raw.Tanh(x) + raw.Tanh(x)
    work = simplify([x], [y], [])
    assert [node.name for node in work.nodes] == ["Tanh", "AddV2"]
    assert work.inputs[y.node] == (work.nodes[0].outputs[0],) * 2


def test_nodes_on_two_devices_are_not_merged() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        a = raw.Tanh(x)
        with graph.device("/task:1"):
            b = raw.Tanh(x)
    assert len(simplify([x], [a, b], []).nodes) == 2


def test_constants_fold_with_the_kernel_that_would_run() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        factor = raw.Exp(graph.constant(0.3))
        y = x * factor
    work = simplify([x], [y], [])
    assert [node.type for node in work.nodes] == ["Mul"]
    assert work.constants[factor] == np.exp(np.float32(0.3))


def test_identities_go() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        y = raw.Identity(raw.Tanh(raw.Identity(x)))
    work = simplify([x], [y], [])
    assert [node.type for node in work.nodes] == ["Tanh"]
    assert work.fetches == (work.nodes[0].outputs[0],)


def test_an_identity_that_others_wait_for_stays() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        a = raw.Identity(raw.Exp(x))
        with graph.control_dependencies([a]):
            y = raw.Tanh(x)
    assert [node.type for node in simplify([x], [y], []).nodes] == ["Exp", "Identity", "Tanh"]


def test_a_fed_constant_is_not_folded() -> None:
    graph = Graph()
    with graph.as_default():
        a = graph.constant(2.0)
        y = raw.Exp(a)
    work = simplify([a], [y], [])
    assert [node.type for node in work.nodes] == ["Exp"]


def test_what_is_fed_does_not_stand_for_its_equals() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        a, b = graph.constant(2.0), graph.constant(2.0)
        c, d = raw.Tanh(x), raw.Tanh(x)
        fetches = [x * a, x * b, raw.Neg(c), raw.Neg(d)]
    work = simplify([x, a, c], fetches, [])
    assert [work.inputs[fetch.node][-1] for fetch in fetches] == [a, b, c, d]


def test_negative_and_positive_zero_stay_apart() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        fetches = [x / graph.constant(0.0), x / graph.constant(-0.0)]
    assert len(simplify([x], fetches, []).nodes) == 2


def test_nothing_waits_for_a_placeholder_that_is_fed() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        with graph.control_dependencies([x.node]):
            y = raw.Tanh(graph.constant(1.0))
    work = simplify([x], [y], [])
    assert not any(work.controls.values())
    assert x.node not in work.nodes


def test_an_unfed_placeholder_is_named() -> None:
    graph = Graph()
    with graph.as_default():
        y = raw.Tanh(placeholder())
    with pytest.raises(InvalidArgument, match="x is not fed"):
        simplify([], [y], [])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: raw.Reshape(x, [2, 3]),
        lambda x: raw.BroadcastTo(x, [2, 3]),
        lambda x: raw.Tile(x, [1, 1]),
        lambda x: raw.Slice(x, [0, 0], [-1, 3]),
        lambda x: raw.Sum(x, np.zeros(0, np.int32)),
    ],
    ids=["Reshape", "BroadcastTo", "Tile", "Slice", "Sum"],
)
def test_what_gives_its_input_back_goes(make: Callable[[Tensor], Tensor]) -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Exp(placeholder("x", (2, 3)))
        y = raw.Neg(make(x))
    work = simplify([graph.tensor("x:0")], [y], [])
    assert [node.type for node in work.nodes] == ["Exp", "Neg"]


def test_what_changes_its_input_stays() -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Exp(placeholder("x", (2, 3)))
        changed = [raw.Reshape(x, [3, 2]), raw.Sum(x, [0]), raw.Tile(x, [1, 2])]
    work = simplify([graph.tensor("x:0")], changed, [])
    assert [node.type for node in work.nodes] == ["Exp", "Reshape", "Sum", "Tile"]
