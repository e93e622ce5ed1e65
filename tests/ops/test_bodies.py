"""Calls, branches and loops: values and gradients to third order, of bodies that differ in every way they can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import LimitExceeded, NotFound
from gradserve.graph import codec
from gradserve.graph.functions import Spec, trace
from gradserve.graph.graph import FunctionName, Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops import loops
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State
from tests.ops.differences import check, run

Body = Callable[..., Any]
X = np.array([0.3, -0.7, 1.1])


def function(graph: Graph, name: str, like: Sequence[Tensor], body: Body, shapes: Any = ...) -> FunctionName:
    """Adds a body to the library; its arguments are like these tensors."""
    specs = [Spec(x.dtype.base, x.shape if shapes is ... else shapes) for x in like]
    return trace(
        graph, name, specs, lambda *given: [y if isinstance(y, Tensor) else raw.Identity(y) for y in body(*given)]
    )


def loop(
    condition: Body, body: Body, *start: Any, kind: str = "StatelessWhile", output_shapes: Any = ()
) -> tuple[Tensor, ...]:
    inputs = [x if isinstance(x, Tensor) else raw.Identity(x) for x in start]
    graph = inputs[0].graph
    asks = function(graph, "cond", inputs, lambda *a: [condition(*a)], None)
    runs = function(graph, "body", inputs, body, None)
    return getattr(raw, kind).outputs(inputs, cond=asks, body=runs, output_shapes=list(output_shapes))


def branch(condition: Any, then: Body, other: Body, *inputs: Tensor) -> tuple[Tensor, ...]:
    graph = inputs[0].graph
    names = [function(graph, name, inputs, body) for name, body in (("then", then), ("other", other))]
    count = len(graph.library.find(names[0].name).signature.output_arg)  # type: ignore[union-attr]
    return raw.StatelessIf.outputs(
        condition, list(inputs), Tout=[inputs[0].dtype.base] * count, then_branch=names[0], else_branch=names[1]
    )


def power(x: Tensor, rounds: int) -> Tensor:
    return loop(lambda i, y, x: raw.Less(i, rounds), lambda i, y, x: [i + 1, y * x + raw.Sin(y), x], 0, x, x)[1]


def halved(x: Tensor) -> Tensor:
    """A number of rounds that depends on the data, and a body with a branch in it."""
    return loop(
        lambda y: raw.Greater(raw.Sum(raw.Square(y), [0]), 0.1),
        lambda y: [
            branch(raw.Less(raw.Sum(y, [0]), 0.3), lambda y: [y * 0.5], lambda y: [raw.Tanh(y) * 0.7], y)[0],
        ],
        x,
    )[0]


def nested(x: Tensor) -> Tensor:
    def inner(i: Tensor, y: Tensor, x: Tensor) -> list[Any]:
        step = loop(lambda j, n, z: raw.Less(j, n), lambda j, n, z: [j + 1, n, raw.Sin(z) + z * z * 0.1], 0, i, y)[2]
        return [i + 1, step * x, x]

    return loop(lambda i, y, x: raw.Less(i, 3), inner, 0, x, x)[1]


def call(x: Tensor) -> Tensor:
    called = function(x.graph, "f", [x, x], lambda a, b: [raw.Sin(a) * b, raw.Exp(b)])
    first, second = raw.PartitionedCall.outputs([x, x * 2.0], Tout=[x.dtype, x.dtype], f=called)
    return first * second


def stacked(x: Tensor) -> Tensor:
    """As map_fn: takes rows out of one list and puts them into another."""
    rows = raw.TensorListFromTensor(x, np.array([], np.int32), element_dtype=x.dtype)
    empty = raw.TensorListReserve(np.array([], np.int32), 3, element_dtype=x.dtype)

    def body(i: Tensor, rows: Tensor, made: Tensor) -> list[Any]:
        row = raw.TensorListGetItem(rows, i, np.array([], np.int32), element_dtype=x.dtype)
        return [i + 1, rows, raw.TensorListSetItem(made, i, raw.Exp(row) * row, element_dtype=x.dtype)]

    made = loop(lambda i, rows, made: raw.Less(i, 3), body, 0, rows, empty)[2]
    return raw.TensorListStack(made, np.array([], np.int32), element_dtype=x.dtype)


def rows(x: Tensor) -> Tensor:
    """Rows that a body takes of an argument, whose gradients are slices: in a loop, a branch and a call."""

    def taken(y: Tensor, x: Tensor) -> list[Tensor]:
        return [y * raw.GatherV2(x, np.array([2, 0, 2], np.int32), np.int32(0))]

    y = loop(lambda i, y, x: raw.Less(i, 2), lambda i, y, x: [i + 1, *taken(y, x), x], 0, x, x)[1]
    (y,) = branch(raw.Greater(raw.Sum(x, [0]), 0.0), taken, lambda y, x: [y + x], y, x)
    return raw.PartitionedCall.outputs([y, x], Tout=[x.dtype], f=function(x.graph, "f", [y, x], taken))[0]


MODELS: dict[str, Callable[[Tensor], Tensor]] = {
    "no rounds": lambda x: power(x, 0),
    "rounds": lambda x: power(x, 4),
    "rounds by the data": halved,
    "a loop in a loop": nested,
    "a branch": lambda x: branch(
        raw.Greater(raw.Sum(x, [0]), 0.0), lambda x: [raw.Sin(x) * x], lambda x: [raw.Exp(x)], x
    )[0],
    "a branch without a gradient": lambda x: branch(
        raw.Less(raw.Sum(x, [0]), 0.0), lambda x: [raw.Sin(x)], lambda x: [np.ones(3)], x
    )[0],
    "a call": call,
    "a loop in a call": lambda x: raw.PartitionedCall.outputs(
        [x], Tout=[x.dtype], f=function(x.graph, "f", [x], lambda x: [power(x, 2)])
    )[0],
    "lists": stacked,
    "rows": rows,
}


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_three_orders_agree_with_differences(name: str, known_shapes: bool) -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,) if known_shapes else None)
        y = MODELS[name](x)
        before = codec.graph_to_message(graph).SerializeToString(deterministic=True)
        check([y], [x], [X], order=3)
        nodes = codec.graph_to_message(graph).node
    # No forward node has changed: what was there is a prefix of what is there.
    old = type(codec.graph_to_message(graph)).FromString(before)
    assert list(nodes)[: len(old.node)] == list(old.node)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_with_its_gradients_comes_back_from_the_wire(name: str) -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,), name="x")
        (dx,) = gradients(MODELS[name](x), x)
        assert isinstance(dx, Tensor)
        again = codec.graph_from_message(codec.graph_to_message(graph))
    got = run([again.tensor(dx.name)], [again.tensor("x:0")], [X])[0]
    np.testing.assert_array_equal(got, run([dx], [x], [X])[0])


@pytest.mark.parametrize("kind", ["StatelessWhile", "While"])
def test_a_variable_that_a_loop_reads_gets_its_gradient(kind: str) -> None:
    with Graph().as_default() as graph:
        handle = raw.VarHandleOp(dtype="float64", shape=(3,), shared_name="w")
        x = raw.Placeholder(dtype="float64", shape=(3,))

        def body(i: Tensor, y: Tensor, w: Tensor) -> list[Any]:
            return [i + 1, y * raw.ReadVariableOp(w, dtype="float64"), w]

        y = loop(lambda i, y, w: raw.Less(i, 3), body, 0, x, handle, kind=kind)[1]
        dw, dx = gradients(y, [handle, x])
        assert isinstance(dw, Tensor)
        assert isinstance(dx, Tensor)
        found = engine.compile(Segment(graph, (x,), (dw, dx)))([X], State(values={"w": X}))
    np.testing.assert_allclose(found[0], 3 * X**3, rtol=1e-12)
    np.testing.assert_allclose(found[1], X**3, rtol=1e-12)


def test_a_case_takes_the_last_branch_out_of_range() -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,))
        index = raw.Placeholder(dtype="int32", shape=())
        branches = [
            function(graph, f"b{k}", [x], body)
            for k, body in enumerate([lambda x: [raw.Sin(x)], lambda x: [x * x], lambda x: [raw.Exp(x)]])
        ]
        (y,) = raw.Case.outputs(index, [x], Tout=["float64"], branches=branches)
        (dx,) = gradients(y, x)
        assert isinstance(dx, Tensor)
        for choice, expected in ((0, np.cos(X)), (1, 2 * X), (2, np.exp(X)), (7, np.exp(X)), (-1, np.exp(X))):
            got = run([dx], [x, index], [X, np.int32(choice)])[0]
            np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_missing_function_is_named() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        with pytest.raises(NotFound, match="no function 'nowhere'"):
            raw.PartitionedCall.outputs([x], Tout=["float64"], f=FunctionName("nowhere", {}))


def test_a_loop_that_does_not_end_is_stopped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MOST_ROUNDS", 100)
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        (y,) = loop(lambda y: raw.Less(raw.Sum(y, [0]), 9.0), lambda y: [y * 1.0], x)
        assert run([power(x, 99)], [x], [X])[0].shape == (3,)
        with pytest.raises(LimitExceeded, match="StatelessWhile has not ended after 100 rounds"):
            run([y], [x], [X])


def test_a_loop_has_the_shapes_that_it_says_where_they_do_not_follow() -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=None)
        y = raw.Placeholder(dtype="float32", shape=(None, 3))

        def rounds(i: Tensor, x: Tensor, y: Tensor) -> list[Any]:
            return [i + 1, x, y]

        start = raw.Identity(0), x, y
        plain = loop(lambda i, x, y: raw.Less(i, 3), rounds, *start)
        said = loop(lambda i, x, y: raw.Less(i, 3), rounds, *start, output_shapes=[(), (2, 3), (None, 3)])
    assert [tensor.shape for tensor in plain] == [(), None, (None, 3)]
    assert [tensor.shape for tensor in said] == [(), (2, 3), (None, 3)]
